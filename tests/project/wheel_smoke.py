"""Starts the gateway of an installed wheel, for the wheels of a release: see cibuildwheel.

usage: python tests/project/wheel_smoke.py FORM, which is "compiled" or "pure Python"

Standard library only: it runs in containers that have nothing but the wheel.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

START_SECONDS = 60.0


def status_of(port: int) -> int:
    """The status of GET /ping; 0 if nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def main(form: str) -> str:
    """What is wrong; empty if nothing is."""
    program = [sys.executable, "-m", "llama_gguf"]
    shown = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    if f"({form})" not in shown.stdout:
        return f"not {form}: {shown.stdout}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environ = {"PATH": os.defpath, "DATA_DIR": folder, "HOST": "127.0.0.1", "PORT": str(port)}
        gateway = subprocess.Popen([*program, "gateway"], env=environ)
        until = time.monotonic() + START_SECONDS
        while (status := status_of(port)) != 200 and time.monotonic() < until:
            if gateway.poll() is not None:
                break
            time.sleep(0.05)
        gateway.send_signal(signal.SIGTERM)
        if status != 200:
            return f"/ping: {status}"
        left = gateway.wait(START_SECONDS)
        return f"exit status {left}" if left else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) or None)
