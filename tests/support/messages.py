"""HTTP/1.1 messages: requests as a client writes them, and a strict reader of both kinds.

Every test that looks at bytes of HTTP reads them here. The reader follows RFC 9112 and shares no
code with the gateway, not even llhttp, so that the two can be compared. It is simple and slow: it
parses from the first byte on each call, and does not depend on how the network split the bytes.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tests.support.keys import KEY

OK: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: llama.cpp\r\n"
    b'Content-Length: 11\r\n\r\n{"ok":true}'
)
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK: Final = b"0\r\n\r\n"


# Writing ------------------------------------------------------------------------------------------


def request(
    method: str = "POST",
    target: str = "/v1/chat/completions",
    *fields: str,
    body: bytes | None = None,
    key: str | None = KEY,
    version: str = "1.1",
) -> bytes:
    """A well-formed request; *body* adds its Content-Length."""
    lines = [f"{method} {target} HTTP/{version}", "Host: gateway.example"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    lines += fields
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(n: int) -> bytes:
    """One complete server-sent event in one chunk."""
    return chunk(b'data: {"n":%d}\n\n' % n)


def bytewise(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + 1] for i in range(len(data)))


def splits(data: bytes) -> Iterable[tuple[bytes, ...]]:
    """*data* in two pieces, split at every byte, and byte by byte."""
    for at in range(1, len(data)):
        yield data[:at], data[at:]
    yield bytewise(data)


# Reading ------------------------------------------------------------------------------------------

Fields = tuple[tuple[str, str], ...]

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/1\.([01])" % _TOKEN)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD: Final = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_EXTENSION: Final = rb';%b(?:=(?:%b|"[\t\x20!\x23-\x5b\x5d-\x7e]*"))?' % (_TOKEN, _TOKEN)
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:%b)*" % _EXTENSION)
_HOST: Final = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?"
)
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#@]+(/.*)?", re.IGNORECASE)
# RFC 9110 section 6.5.1: fields that frame or route a message are not allowed in a trailer.
_NOT_IN_TRAILERS: Final = (b"content-length", b"transfer-encoding", b"host", b"trailer")
_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")


class Malformed(Exception):
    """It is not a message, or its bytes could be read in two ways."""


class End(enum.Enum):
    WHOLE = "whole"
    OPEN = "open"  # incomplete: more bytes are needed
    BROKEN = "broken"  # no further bytes can complete it


@dataclass(frozen=True)
class Message:
    fields: Fields
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of every field *name*."""
        return [value for n, value in self.fields if n.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        """The value of the only field *name*."""
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Request(Message):
    method: bytes
    target: bytes
    """Path and query, regardless of the form of the target."""
    version: bytes


@dataclass(frozen=True)
class Response(Message):
    status: int
    status_line: bytes
    chunks: tuple[bytes, ...]
    """Of a chunked body; the last may be incomplete."""
    end: End

    @property
    def is_whole(self) -> bool:
        return self.end is End.WHOLE


def take_request(data: bytes) -> tuple[Request, bytes] | None:
    """The first request in *data* and the bytes after it; None if it is incomplete.

    Raises:
        Malformed: no further bytes can make it a request.
    """
    # RFC 9112 section 2.2: empty lines before a request are skipped.
    head, found, rest = _EMPTY_LINES.sub(b"", data).partition(b"\r\n\r\n")
    if not found:
        return None
    line, fields = _read_head(head)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Malformed(f"not a request line: {line!r}")
    method, target, version = match[1], _read_target(match[1], match[2]), b"1." + match[3]
    _check_host(fields, version)
    length, is_chunked = _read_framing(fields)
    if is_chunked and version == b"1.0":
        raise Malformed("chunked in HTTP/1.0")
    body, rest, end = _take_chunked(rest) if is_chunked else _take_length(rest, length or 0)
    if end is End.BROKEN:
        raise Malformed("the body violates its framing")
    return None if end is End.OPEN else (Request(fields, body, method, target, version), rest)


def take_response(
    data: bytes, *, is_head_request: bool = False, has_ended: bool = False
) -> tuple[Response, bytes] | None:
    """The first final response in *data* and the bytes after it; None if its head is incomplete.

    Args:
        data: the bytes received so far.
        is_head_request: it is the response to a HEAD.
        has_ended: the connection was closed, not reset.

    Raises:
        Malformed: no further bytes can make it a response.
    """
    found = _take_any_response(data, is_head_request=is_head_request, has_ended=has_ended)
    while found is not None and found[0].status < 200:
        found = _take_any_response(found[1], is_head_request=is_head_request, has_ended=has_ended)
    return found


def read_responses(data: bytes, *, is_head_request: bool = False) -> list[Response]:
    """All responses in *data*, interim ones too, of a gateway that has sent nothing else.

    Raises:
        Malformed: *data* has anything else in it, or an incomplete head at its end.
    """
    responses = []
    while data:
        found = _take_any_response(data, is_head_request=is_head_request, has_ended=True)
        if found is None or found[0].end is End.BROKEN or not data.startswith(b"HTTP/1.1 "):
            raise Malformed(f"not a response: {data[:200]!r}")
        response, data = found
        responses.append(response)
    return responses


def _take_any_response(
    data: bytes, *, is_head_request: bool, has_ended: bool
) -> tuple[Response, bytes] | None:
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    line, fields = _read_head(head)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Malformed(f"not a status line: {line!r}")
    status = int(match[1])
    if status == 101:
        raise Malformed("an upgrade that was not requested")
    length, is_chunked = _read_framing(fields)
    chunks: tuple[bytes, ...] = ()
    if is_head_request or status < 200 or status in (204, 304):
        body, end = b"", End.WHOLE
    elif is_chunked:
        chunks, rest, end = _take_chunks(rest)
        body = b"".join(chunks)
    elif length is not None:
        body, rest, end = _take_length(rest, length)
    else:
        body, rest, end = rest, b"", End.WHOLE if has_ended else End.OPEN
    return Response(fields, body, status, line, chunks, end), rest


def _read_head(head: bytes) -> tuple[bytes, Fields]:
    line, *lines = head.split(b"\r\n")
    return line, tuple(map(_read_field, lines))


def _read_field(line: bytes) -> tuple[str, str]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Malformed(f"not a field: {line!r}")
    return match[1].decode(), match[2].strip(b" \t").decode("latin-1")


def _read_target(method: bytes, target: bytes) -> bytes:
    """RFC 9112 section 3.2: all forms except that of CONNECT."""
    if b"#" in target:
        raise Malformed("a fragment")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Malformed(f"not a target: {target!r}")
    return match[1] or b"/"


def _check_host(fields: Fields, version: bytes) -> None:
    hosts = [value for name, value in fields if name.lower() == "host"]
    if len(hosts) > 1 or (version == b"1.1" and not hosts):
        raise Malformed(f"{len(hosts)} Host fields")
    if hosts and not _HOST.fullmatch(hosts[0].encode("latin-1")):
        raise Malformed(f"not a host: {hosts[0]!r}")


def _read_framing(fields: Fields) -> tuple[int | None, bool]:
    """The Content-Length, and whether the body is chunked."""
    lengths = [value for name, value in fields if name.lower() == "content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == "transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise Malformed("framed twice")
    if lengths and not _LENGTH.fullmatch(lengths[0].encode("latin-1")):
        raise Malformed(f"not a length: {lengths[0]!r}")
    if codings and codings != ["chunked"]:
        raise Malformed(f"an unknown coding: {codings[0]!r}")
    return (int(lengths[0]) if lengths else None), bool(codings)


def _take_length(data: bytes, length: int) -> tuple[bytes, bytes, End]:
    """The body so far, the bytes after it, and whether it is complete."""
    return data[:length], data[length:], End.WHOLE if len(data) >= length else End.OPEN


def _take_chunked(data: bytes) -> tuple[bytes, bytes, End]:
    chunks, rest, end = _take_chunks(data)
    return b"".join(chunks), rest, end


def _take_chunks(data: bytes) -> tuple[tuple[bytes, ...], bytes, End]:
    chunks: list[bytes] = []
    at = 0
    while True:
        line, end, at = _take_line(data, at)
        match = _SIZE_LINE.fullmatch(line)
        if end is not End.WHOLE or match is None:
            break
        size = int(match[1], 16)
        if not size:
            return tuple(chunks), *_skip_trailers(data, at)
        chunks.append(data[at : at + size])
        line, end, at = _take_line(data, at + size)
        if end is not End.WHOLE or line:
            break
    return tuple(chunks), b"", End.BROKEN if end is End.WHOLE else end


def _skip_trailers(data: bytes, at: int) -> tuple[bytes, End]:
    while True:
        line, end, at = _take_line(data, at)
        if end is not End.WHOLE:
            return b"", end
        if not line:
            return data[at:], End.WHOLE
        match = _FIELD.fullmatch(line)
        if match is None or match[1].lower() in _NOT_IN_TRAILERS:
            return b"", End.BROKEN


def _take_line(data: bytes, at: int) -> tuple[bytes, End, int]:
    """The line that begins at *at*, without its CRLF, whether it is complete, and its end."""
    line_end = data.find(b"\n", at)
    if line_end < 0:
        return b"", End.OPEN, len(data)
    line = data[at:line_end]
    return line[:-1], End.WHOLE if line.endswith(b"\r") else End.BROKEN, line_end + 1


# Judging ------------------------------------------------------------------------------------------


def code_of(response: Response) -> str:
    """The ``code`` of an error of the gateway itself; fails if *response* is not one."""
    match = re.search(rb'"code": "([a-z_]+)"', response.body)
    assert match, response.body
    assert response["content-type"] == "application/json"
    return match[1].decode()


_VARYING: Final = re.compile(
    rb"req-[0-9a-f]{12}-[0-9a-f]{8}|Date: [A-Za-z0-9,: ]+ GMT|remaining-requests: [0-9]+"
    rb"|reset-requests: [0-9ms]+"
)


def without_varying(data: bytes) -> bytes:
    """*data* without request ids, dates and counts, so that two runs can be compared."""
    return _VARYING.sub(b"*", data)
