"""The chunked transfer coding (RFC 9112 section 7.1), tracked without copying the body.

Heads are parsed by llhttp. A body only has to be *followed*, so that its end is
known, and that takes a table of four states. Whatever is not exactly in the
grammar raises: nothing that two parsers could read in two ways goes on.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from llama_gguf.memo import BoundedMemo

MAX_LINE_BYTES: Final = 1024
"""Of a chunk-size line with its extensions. Their sender is ignored, not obeyed (section 7.1.1)."""
MAX_TRAILER_BYTES: Final = 8192
TAIL_BYTES: Final = 4
"""Tell whether an event is whole: it ends with two line ends."""

_MAX_REMEMBERED: Final = 4096
"""Size lines, by what they mean and by the length of their chunk."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_EXTENSION: Final = rb';%b(?:=(?:%b|"[\t\x20!\x23-\x5b\x5d-\x7e]*"))?' % (_TOKEN, _TOKEN)
# No sign, no "0x", no underscore: all of which int(..., 16) would take.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:%b)*\r\n" % _EXTENSION)
# RFC 9110 section 6.5.1: what frames or routes a message has no business in a trailer.
_NO_TRAILER: Final = rb"(?!(?i:content-length|transfer-encoding|host|trailer):)"
_TRAILER_LINE: Final = re.compile(rb"%b%b:[\t\x20-\x7e\x80-\xff]*\r\n" % (_NO_TRAILER, _TOKEN))


LAST_CHUNK: Final = b"0\r\n\r\n"


class ChunkedError(ValueError):
    """The bytes are not in the chunked coding."""


class _State(enum.IntEnum):
    SIZE = 0  # in a chunk-size line
    DATA = 1  # in a chunk's data
    DATA_END = 2  # in the CRLF behind it
    TRAILER = 3  # behind the last chunk
    DONE = 4


class ChunkedBody:
    """Where one chunked body stands."""

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "tail")

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0
        self.tail = b""
        """The last bytes of the body itself, up to ``TAIL_BYTES`` of them."""

    @property
    def is_done(self) -> bool:
        return self._state is _State.DONE

    @property
    def is_between_chunks(self) -> bool:
        """Whether something of our own may be inserted here."""
        return self._state is _State.SIZE and not self._line

    def feed(self, data: bytes, sink: bytearray | None = None) -> int:
        """Follow *data*, and add the body itself to *sink*.

        Returns:
            How many bytes of *data* belong to this body; fewer than all only
            when it ended within them.

        Raises:
            ChunkedError: *data* is not in the coding.
        """
        if sink is None and self.is_between_chunks:
            chunk = data.removesuffix(LAST_CHUNK)
            if not chunk or is_one_chunk(chunk):
                return self._take_whole(chunk, data)
        at = 0
        while at < len(data) and self._state is not _State.DONE:
            if self._state is _State.DATA:
                at = self._data(data, at, sink)
            else:
                at = self._through_line(data, at)
        return at

    def _take_whole(self, chunk: bytes, data: bytes) -> int:
        """What mostly comes at once: a *chunk*, the last one behind it, or only that."""
        if chunk:
            self.tail = chunk[-TAIL_BYTES - 2 : -2]
        if len(chunk) < len(data):
            self._state = _State.DONE
        return len(data)

    def _data(self, data: bytes, at: int, sink: bytearray | None) -> int:
        end = min(at + self._left, len(data))
        if sink is not None:
            sink += data[at:end]
        self.tail = (self.tail + data[max(at, end - TAIL_BYTES) : end])[-TAIL_BYTES:]
        self._left -= end - at
        if self._left:
            return end
        if data[end : end + 2] == b"\r\n":
            self._state = _State.SIZE
            return end + 2
        self._state = _State.DATA_END
        return end

    def _through_line(self, data: bytes, at: int) -> int:
        """Collect a line that may have come in pieces; act on it when it is whole."""
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
        self._left = _SIZES[line]
        self._state = _State.DATA if self._left else _State.TRAILER

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
    """The only one of a chunk of *length* bytes in all; if there is none, what is too long."""
    digits = len(b"%x" % length)
    for line_length in (digits + 2, digits + 1):  # the framing may take up a digit's worth
        size = length - line_length - 2
        line = b"%x\r\n" % max(size, 0)
        if size >= TAIL_BYTES and len(line) == line_length:
            return line
    return b"\n" * (length + 1)


_SIZES: Final = BoundedMemo(_size, max_entries=_MAX_REMEMBERED)
_SIZE_LINES: Final = [b""] * _MAX_REMEMBERED
"""By the length of a whole chunk, framing included, the size line that it begins with."""


def is_one_chunk(data: bytes) -> bool:
    """Whether *data* is exactly one whole chunk of some length, as an SSE event mostly is.

    The streaming path. There is one way to write the size of a chunk of this length in small
    hex digits without extensions; False for any other, which ``feed`` then looks at.
    """
    length = len(data)
    if length >= _MAX_REMEMBERED:
        line = _size_line(length)
    else:
        line = _SIZE_LINES[length]
        if not line:
            line = _SIZE_LINES[length] = _size_line(length)
    return data.startswith(line) and data.endswith(b"\r\n")
