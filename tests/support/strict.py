"""Messages as RFC 9112 lets them be read, and in no other way: what soak and fuzz compare with.

It shares nothing with the gateway, not even llhttp. Plain and slow: it reads from the first
byte each time, and is told nothing of where the network cut them.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

Fields = tuple[tuple[bytes, bytes], ...]

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
# RFC 9110 section 6.5.1: what frames or routes a message has no business in a trailer.
_NOT_IN_TRAILERS: Final = (b"content-length", b"transfer-encoding", b"host", b"trailer")


class Malformed(Exception):
    """It is no message, or one that could be read in two ways."""


_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")


class End(enum.Enum):
    WHOLE = "whole"
    OPEN = "open"  # more has to come
    BROKEN = "broken"  # whatever comes, it will not be whole


@dataclass(frozen=True)
class Message:
    fields: Fields
    body: bytes

    def all(self, name: bytes) -> list[bytes]:
        return [value for n, value in self.fields if n.lower() == name]


@dataclass(frozen=True)
class Request(Message):
    method: bytes
    target: bytes
    """Path and query, whatever form it came in."""
    version: bytes


@dataclass(frozen=True)
class Response(Message):
    status: int
    end: End


def take_request(data: bytes) -> tuple[Request, bytes] | None:
    """The first request in *data* and what is behind it; None when it is not whole.

    Raises:
        Malformed: no request, whatever comes.
    """
    # RFC 9112 section 2.2: empty lines in front are skipped.
    head, found, rest = _EMPTY_LINES.sub(b"", data).partition(b"\r\n\r\n")
    if not found:
        return None
    line, fields = _read_head(head)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Malformed(f"no request line: {line!r}")
    method, target, version = match[1], _read_target(match[1], match[2]), b"1." + match[3]
    _check_host(fields, version)
    length, is_chunked = _read_framing(fields)
    if is_chunked and version == b"1.0":
        raise Malformed("chunked in HTTP/1.0")
    body, rest, end = _take_chunks(rest) if is_chunked else _take_length(rest, length or 0)
    if end is End.BROKEN:
        raise Malformed("the body breaks its framing")
    return None if end is End.OPEN else (Request(fields, body, method, target, version), rest)


def take_response(
    data: bytes, *, to_head: bool = False, has_ended: bool = False
) -> tuple[Response, bytes] | None:
    """The first final response in *data* and what is behind it; None when its head is not whole.

    Args:
        data: what has come.
        to_head: it answers a HEAD.
        has_ended: the connection has, and not by a reset.

    Raises:
        Malformed: no response, whatever comes.
    """
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    line, fields = _read_head(head)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Malformed(f"no status line: {line!r}")
    status = int(match[1])
    if status == 101:
        raise Malformed("nobody asked for an upgrade")
    if status < 200:
        return take_response(rest, to_head=to_head, has_ended=has_ended)
    length, is_chunked = _read_framing(fields)
    if to_head or status in (204, 304):
        body, end = b"", End.WHOLE
    elif is_chunked:
        body, rest, end = _take_chunks(rest)
    elif length is not None:
        body, rest, end = _take_length(rest, length)
    else:
        body, rest, end = rest, b"", End.WHOLE if has_ended else End.OPEN
    return Response(fields, body, status, end), rest


def _read_head(head: bytes) -> tuple[bytes, Fields]:
    line, *lines = head.split(b"\r\n")
    return line, tuple(map(_read_field, lines))


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Malformed(f"no field: {line!r}")
    return match[1], match[2].strip(b" \t")


def _read_target(method: bytes, target: bytes) -> bytes:
    """RFC 9112 section 3.2, in all of its forms but that of CONNECT."""
    if b"#" in target:
        raise Malformed("a fragment")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Malformed(f"no target: {target!r}")
    return match[1] or b"/"


def _check_host(fields: Fields, version: bytes) -> None:
    hosts = [value for name, value in fields if name.lower() == b"host"]
    if len(hosts) > 1 or (version == b"1.1" and not hosts):
        raise Malformed(f"{len(hosts)} Host fields")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Malformed(f"no host: {hosts[0]!r}")


def _read_framing(fields: Fields) -> tuple[int | None, bool]:
    """The Content-Length, and whether the body is chunked."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise Malformed("framed twice")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise Malformed(f"no length: {lengths[0]!r}")
    if codings and codings != [b"chunked"]:
        raise Malformed(f"an unknown coding: {codings[0]!r}")
    return (int(lengths[0]) if lengths else None), bool(codings)


# Each returns the body as far as it has come, what is behind it, and how far that is.
_Taken = tuple[bytes, bytes, End]


def _take_length(data: bytes, length: int) -> _Taken:
    return data[:length], data[length:], End.WHOLE if len(data) >= length else End.OPEN


def _take_chunks(data: bytes) -> _Taken:
    chunks: list[bytes] = []
    at = 0
    while True:
        line, end, at = _take_line(data, at)
        match = _SIZE_LINE.fullmatch(line)
        if end is not End.WHOLE or match is None:
            break
        size = int(match[1], 16)
        if not size:
            return b"".join(chunks), *_skip_trailers(data, at)
        chunks.append(data[at : at + size])
        line, end, at = _take_line(data, at + size)
        if end is not End.WHOLE or line:
            break
    return b"".join(chunks), b"", End.BROKEN if end is End.WHOLE else end


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
    """The line that begins at *at*, without its CRLF, whether it is whole, and where it ends."""
    line_end = data.find(b"\n", at)
    if line_end < 0:
        return b"", End.OPEN, len(data)
    line = data[at:line_end]
    return line[:-1], End.WHOLE if line.endswith(b"\r") else End.BROKEN, line_end + 1
