#!/usr/bin/env bash
# A class-level default of None is not set by mypyc when the attribute's type is "a Protocol or None".
#
# Expected: `attribute: SomeProtocol | None = None` in a class body gives every instance None, as in
# CPython and as mypyc itself does for `SomeClass | None = None` with a native class.
# Found: mypy accepts it, mypyc compiles it without a word, and reading the attribute of a new
# instance raises AttributeError: attribute 'watcher' of 'Request' undefined. With a native class in
# place of the Protocol, it is None. Interpreted, both are None.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'mypy[mypyc]==2.4.1' 'setuptools==84.2.1'
cat > module.py <<'PY'
from typing import Protocol


class Watcher(Protocol):
    def look(self) -> None: ...


class Native:
    def look(self) -> None:
        pass


class Request:
    native: Native | None = None
    watcher: Watcher | None = None


def describe() -> str:
    request = Request()
    found = [f"native: {request.native}"]
    try:
        found.append(f"watcher: {request.watcher}")
    except AttributeError as error:
        found.append(f"watcher: AttributeError: {error}")
    return "; ".join(found)
PY
interpreted=$(venv/bin/python -c 'import module; print(module.describe())')
venv/bin/mypyc module.py > build.log 2>&1 || { cat build.log; exit 1; }
compiled=$(venv/bin/python -c 'import module; assert module.__file__.endswith(".so"); print(module.describe())')
venv/bin/mypy --version
echo "interpreted: $interpreted"
echo "compiled:    $compiled"
[ "$interpreted" = "native: None; watcher: None" ]
[ "$compiled" = "native: None; watcher: AttributeError: attribute 'watcher' of 'Request' undefined" ]
