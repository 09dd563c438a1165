#!/usr/bin/env bash
# aiperf cannot load a tokenizer from a directory while HF_HUB_OFFLINE is set, even to 0.
#
# Expected: a directory is loaded without the hub, above all offline, as transformers' AutoTokenizer
# does; and HF_HUB_OFFLINE=0 means that the hub may be used, as in huggingface_hub.
# Found: aiperf takes the path for the id of a repository: "Repo id must be in the form 'repo_name' or
# 'namespace/repo_name'". Without the variable, the same directory is loaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'aiperf==0.13.0' 'transformers==5.24.0' 'huggingface-hub==1.33.0' 'tokenizers==0.23.3'
cat > make.py <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained("tokenizer")
PY
cat > try.py <<'PY'
import os

from transformers import AutoTokenizer

from aiperf.common.exceptions import TokenizerError
from aiperf.common.tokenizer import Tokenizer

AutoTokenizer.from_pretrained("tokenizer")  # loads it in any case
try:
    Tokenizer.from_pretrained(os.path.abspath("tokenizer"), resolve_alias=False)
except TokenizerError as error:
    print("refused:", str(error).partition(": ")[2][:60])
else:
    print("loaded")
PY
venv/bin/python make.py 2>/dev/null
unset=$(env -u HF_HUB_OFFLINE venv/bin/python try.py 2>/dev/null)
zero=$(HF_HUB_OFFLINE=0 venv/bin/python try.py 2>/dev/null)
one=$(HF_HUB_OFFLINE=1 venv/bin/python try.py 2>/dev/null)
printf 'not set: %s\n0: %s\n1: %s\n' "$unset" "$zero" "$one"
[[ $unset == loaded && $zero == refused* && $one == refused* ]]
