#!/usr/bin/env bash
# llhttp, as httptools ships it, takes a space behind `Transfer-Encoding: chunked` in a request, but no tab.
#
# Expected: optional white space behind a field's value is no part of it, and is spaces or tabs
# (RFC 9110 section 5.5, RFC 9112 section 5); both are taken, as for every other field.
# Found: of a request, "chunked " is parsed as chunked and "chunked\t" is refused with an invalid
# Transfer-Encoding; of a response, both are taken. Another field with a tab behind it is taken, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'httptools==0.9.0'
cat > try.py <<'PY'
from importlib.metadata import version

import httptools


class Callbacks:
    pass


def outcome(parser, data: bytes) -> str:
    try:
        parser.feed_data(data)
    except httptools.HttpParserError as error:
        return f"refused: {error}"
    return "taken"


def request(field: bytes) -> str:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n0\r\n\r\n"
    return outcome(httptools.HttpRequestParser(Callbacks()), head)


def response(field: bytes) -> str:
    head = b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n0\r\n\r\n"
    return outcome(httptools.HttpResponseParser(Callbacks()), head)


print("httptools", version("httptools"))
CHUNKED = b"Transfer-Encoding: chunked"
results = {
    "request, nothing behind": request(CHUNKED),
    "request, a space behind": request(CHUNKED + b" "),
    "request, a tab behind": request(CHUNKED + b"\t"),
    "response, a tab behind": response(CHUNKED + b"\t"),
    "request, another field, a tab behind": request(CHUNKED + b"\r\nX-Other: value\t"),
}
for case, result in results.items():
    print(f"{case}: {result}")
taken = [case for case, result in results.items() if result == "taken"]
assert taken == [case for case in results if case != "request, a tab behind"], taken
PY
venv/bin/python try.py
