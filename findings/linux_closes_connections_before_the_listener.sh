#!/usr/bin/env bash
# A killed server's connections end before its listening socket, which still accepts meanwhile.
#
# Expected: when a client sees that its connection has ended because the server was killed, a new
# connection to the server is refused (or served by another process).
# Found: the kernel closes the files of an ending process in the reverse order of their numbers. A
# listening socket, which servers open first, is closed last. Until then connections to it succeed,
# and are reset afterwards, with whatever was sent on them. With a listening socket that was opened
# last, none succeeds. What is closed in between (GPU devices, say) makes the time longer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > try.py <<'PY'
import platform
import socket
import subprocess
import sys

ROUNDS = 40
SERVER = """
import os, socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
if {is_last}:
    connection, _ = listener.accept()
others = [socket.socket() for _ in range(900)]  # closed in between
if not {is_last}:
    connection, _ = listener.accept()
if {is_last}:
    os.dup2(listener.fileno(), 1000)
    listener.close()
connection.sendall(b"x")
connection.recv(1)
"""


def connects_after_the_end(*, is_last: bool) -> bool:
    code = SERVER.format(is_last=is_last)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        address = ("127.0.0.1", int(server.stdout.readline()))
        with socket.create_connection(address) as client:
            client.recv(1)
            server.kill()
            try:
                client.recv(1)
            except ConnectionResetError:
                pass
            try:
                socket.create_connection(address).close()
            except ConnectionRefusedError:
                return False
            return True


print("Linux", platform.release(), "Python", platform.python_version())
first = sum(connects_after_the_end(is_last=False) for _ in range(ROUNDS))
last = sum(connects_after_the_end(is_last=True) for _ in range(ROUNDS))
print(f"listening socket opened first: {first} of {ROUNDS} connected after the end of a connection")
print(f"listening socket opened last: {last} of {ROUNDS}")
if not first or last:
    sys.exit("it behaves otherwise")
PY
python3 try.py
