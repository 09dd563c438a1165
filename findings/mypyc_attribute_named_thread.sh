#!/usr/bin/env bash
# A native class with an attribute named `_thread` does not compile with mypyc.
#
# Expected: an attribute's name is only a Python name; `_thread` is a usual one for a private thread.
# Found: mypyc prefixes it with one underscore for the C struct, which gives `__thread`, a keyword of
# GCC and Clang. mypy finds nothing wrong, and the C compiler stops with a syntax error in generated
# code that names neither the class nor the attribute's line. `_worker` in its place compiles.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'mypy[mypyc]==2.4.1' 'setuptools==84.2.1'
for name in _worker _thread; do
    mkdir "$name"
    cat > "$name/module.py" <<PY
from threading import Thread


class Writer:
    def __init__(self) -> None:
        self.$name = Thread()
PY
    (
        cd "$name"
        ../venv/bin/mypy --no-color-output module.py
        if ../venv/bin/mypyc module.py > build.log 2>&1; then echo "$name: compiles"; else
            echo "$name: does not compile: $(grep -m1 'error:' build.log | sed 's/.*error:/error:/')"
        fi
    ) | tee "$name.out"
done
venv/bin/mypy --version
grep -q '^_worker: compiles' _worker.out
grep -q '^_thread: does not compile: error:' _thread.out
