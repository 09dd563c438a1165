#!/usr/bin/env bash
# In Debian 12's Python 3.11, a possessive group fails to match valid text.
#
# Expected: a possessive quantifier (`*+`, new in Python 3.11) never matches text that the greedy one
# (`*`) does not match at all when what follows cannot be matched by the group itself. Here each part
# begins with another character, so that there is nothing to give back.
# Found: in Debian 12 (3.11.2) the group does not go back to where its last, incomplete repetition
# began. With a look-behind in the group, or an alternative that matches only in part, the expression
# does not match. CPython changed this in 3.11.5 (gh-106052); Debian 12 still has 3.11.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
version=3.11.2-6+deb12u8
for name in python3.11-minimal libpython3.11-minimal; do
    apt-get download -qq -o APT::Sandbox::User=root "$name=$version"
done
for package in ./*.deb; do
    dpkg-deb -x "$package" root
done
cat > try.py <<'PY'
import re
import sys

print("Python", sys.version.split()[0])
for group in rb'(?:(?<=\\)"[^"]*+)', rb'(?:[^"{}]++|\{[^{}]*+\})':
    for quantifier in b"*", b"*+":
        found = re.match(rb'"[^"{]*+' + group + quantifier + rb'(?:"|\{)', b'"ab{cd"')
        print((group + quantifier).decode().ljust(28), found and found[0])
PY
found=$(PYTHONHOME=root/usr root/usr/bin/python3.11 -S try.py)
echo "$found"
[[ $(grep -c 'b.*ab{' <<<"$found") == 2 && $(grep -c ' None$' <<<"$found") == 2 ]]
