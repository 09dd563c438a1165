"""The chunked transfer coding (RFC 9112 section 7.1), tracked without copying the body.

Heads are parsed by llhttp. A body only has to be *followed* until its end, which takes
five states. Bytes that do not match the grammar exactly raise an error, so that nothing
ambiguous is forwarded.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from llama_gguf.memo import BoundedMemo

MAX_LINE_BYTES: Final = 1024
"""Of a chunk-size line with its extensions, which are ignored (section 7.1.1)."""
MAX_TRAILER_BYTES: Final = 8192
TAIL_BYTES: Final = 4
"""Enough to determine whether an event is complete: it ends with two line ends."""

_MAX_REMEMBERED: Final = 4096
"""Size lines that are stored, by their text and by the length of their chunk."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_EXTENSION: Final = rb';%b(?:=(?:%b|"[\t\x20!\x23-\x5b\x5d-\x7e]*"))?' % (_TOKEN, _TOKEN)
# No sign, "0x" or underscore, all of which int(..., 16) accepts.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:%b)*\r\n" % _EXTENSION)
# RFC 9110 section 6.5.1: fields for framing or routing are not permitted in a trailer.
_NO_TRAILER: Final = rb"(?!(?i:content-length|transfer-encoding|host|trailer):)"
_TRAILER_LINE: Final = re.compile(rb"%b%b:[\t\x20-\x7e\x80-\xff]*\r\n" % (_NO_TRAILER, _TOKEN))


LAST_CHUNK: Final = b"0\r\n\r\n"


class ChunkedError(ValueError):
    """The bytes are not valid chunked coding."""


class _State(enum.IntEnum):
    SIZE = 0  # in a chunk-size line
    DATA = 1  # in a chunk's data
    DATA_END = 2  # in the CRLF after it
    TRAILER = 3  # after the last chunk
    DONE = 4


class ChunkedBody:
    """The state of one chunked body."""

    __slots__ = ("_line", "_remaining", "_state", "_trailer_bytes", "tail")

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._remaining = 0
        self._line = b""
        self._trailer_bytes = 0
        self.tail = b""
        """The last bytes of the body itself, up to ``TAIL_BYTES`` of them."""

    @property
    def is_done(self) -> bool:
        return self._state is _State.DONE

    @property
    def is_between_chunks(self) -> bool:
        """Whether the gateway may insert bytes here, such as a comment or an error event."""
        return self._state is _State.SIZE and not self._line

    def feed(self, data: bytes, sink: bytearray | None = None) -> int:
        """Process *data*, and add the decoded body to *sink*.

        Returns:
            How many bytes of *data* belong to this body; fewer than all only
            when it ended within them.

        Raises:
            ChunkedError: *data* is not valid chunked coding.
        """
        if sink is None and self.is_between_chunks:
            chunk = data.removesuffix(LAST_CHUNK)
            if not chunk or is_one_chunk(chunk):
                return self._on_complete_chunk(chunk, data)
        at = 0
        while at < len(data) and self._state is not _State.DONE:
            if self._state is _State.DATA:
                at = self._data(data, at, sink)
            else:
                at = self._through_line(data, at)
        return at

    def _on_complete_chunk(self, chunk: bytes, data: bytes) -> int:
        """The usual contents of one read: a *chunk*, the last chunk, or both."""
        if chunk:
            self.tail = chunk[-TAIL_BYTES - 2 : -2]
        if len(chunk) < len(data):
            self._state = _State.DONE
        return len(data)

    def _data(self, data: bytes, at: int, sink: bytearray | None) -> int:
        end = min(at + self._remaining, len(data))
        if sink is not None:
            sink += data[at:end]
        self.tail = (self.tail + data[max(at, end - TAIL_BYTES) : end])[-TAIL_BYTES:]
        self._remaining -= end - at
        if self._remaining:
            return end
        if data[end : end + 2] == b"\r\n":
            self._state = _State.SIZE
            return end + 2
        self._state = _State.DATA_END
        return end

    def _through_line(self, data: bytes, at: int) -> int:
        """Collect a line, which may arrive in pieces, and process it once it is complete."""
        line_end = data.find(b"\n", at) + 1
        self._line += data[at : line_end or len(data)]
        if len(self._line) > MAX_LINE_BYTES:
            raise ChunkedError("a line of the chunked coding is too long")
        if not line_end:
            return len(data)
        line, self._line = self._line, b""
        self._on_line(line)
        return line_end

    def _on_line(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            self._on_size(line)
        elif self._state is _State.DATA_END:
            if line != b"\r\n":
                raise ChunkedError("a chunk's data is longer than its size")
            self._state = _State.SIZE
        elif line == b"\r\n":
            self._state = _State.DONE
        else:
            self._on_trailer(line)

    def _on_size(self, line: bytes) -> None:
        self._remaining = _SIZES[line]
        self._state = _State.DATA if self._remaining else _State.TRAILER

    def _on_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES or not _TRAILER_LINE.fullmatch(line):
            raise ChunkedError("a trailer field is malformed or too long")


def frame(data: bytes) -> bytes:
    """*data* as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _size(line: bytes) -> int:
    """The size that the size line *line* means."""
    match = _SIZE_LINE.fullmatch(line)
    if match is None:
        raise ChunkedError("a chunk's size is not a hexadecimal number")
    return int(match[1], 16)


def _size_line(length: int) -> bytes:
    """The size line of a chunk of *length* bytes, framing included.

    If there is none, a line that is longer than the chunk, so that it never matches.
    """
    digits = len(b"%x" % length)
    for line_length in (digits + 2, digits + 1):  # the framing may cost one digit
        size = length - line_length - 2
        line = b"%x\r\n" % max(size, 0)
        if size >= TAIL_BYTES and len(line) == line_length:
            return line
    return b"\n" * (length + 1)


_SIZES: Final = BoundedMemo(_size, max_entries=_MAX_REMEMBERED)
_SIZE_LINES: Final = [b""] * _MAX_REMEMBERED
"""By the length of a chunk, framing included: the size line that it begins with."""


def is_one_chunk(data: bytes) -> bool:
    """Whether *data* is exactly one complete chunk, as an SSE event usually is.

    The streaming path. A chunk of this length has only one size line in lower-case digits without
    extensions. False for all other spellings, which ``feed`` then parses.
    """
    length = len(data)
    if length >= _MAX_REMEMBERED:
        line = _size_line(length)
    else:
        line = _SIZE_LINES[length]
        if not line:
            line = _SIZE_LINES[length] = _size_line(length)
    return data.startswith(line) and data.endswith(b"\r\n")
