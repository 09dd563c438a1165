"""A bounded reader of the header of a GGUF file.

Every length is compared with the size of the file and with ``MAX_HEADER_BYTES`` before anything
of that length is read, so a hostile file costs at most that much reading, and a chunk of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

MAX_HEADER_BYTES: Final = 256 << 20
"""The largest vocabularies take about 20 MB."""

_CHUNK_BYTES: Final = 1 << 20
_KEPT_TEXT_BYTES: Final = 1024  # enough for a name; a chat template is truncated
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class GgufError(ValueError):
    """The file cannot be served. The message completes "FILE is ...": "empty", "cut off: ..."."""


class Cursor:
    """Reads ahead in chunks, and raises GgufError if the file is too short."""

    __slots__ = ("_at", "_buffer", "_file_bytes", "_read", "_read_bytes")

    def __init__(self, read: Callable[[int], bytes], file_bytes: int) -> None:
        self._read = read
        self._file_bytes = file_bytes
        self._buffer = b""
        self._at = 0
        self._read_bytes = 0

    @property
    def position(self) -> int:
        return self._read_bytes - len(self._buffer) + self._at

    def need(self, size: int) -> None:
        """Raise GgufError if the file, or a valid header, has fewer than *size* more bytes."""
        end = self.position + size
        if end > self._file_bytes:
            raise GgufError(
                f"cut off within its header: it has {self._file_bytes} bytes, "
                f"but the header extends to byte {end} or beyond"
            )
        if end > MAX_HEADER_BYTES:
            raise GgufError(f"not a model: its header would be {end} bytes long")

    def _fill(self, size: int) -> None:
        missing = size - (len(self._buffer) - self._at)
        if missing <= 0:
            return
        self.need(size)
        more = self._read(max(missing, _CHUNK_BYTES))
        self._read_bytes += len(more)
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        if len(more) < missing:
            raise GgufError("cut off within its header: it shrank while it was read")

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        self._fill(form.size)
        at = self._at
        self._at += form.size
        return form.unpack_from(self._buffer, at)

    def u32(self) -> int:
        return int(self.unpack(_U32)[0])

    def u64(self) -> int:
        return int(self.unpack(_U64)[0])

    def peek(self, size: int) -> bytes:
        """Return the next *size* bytes, or fewer at the end, without advancing."""
        self._fill(min(size, self._file_bytes - self.position))
        return self._buffer[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        self._fill(size)
        self._at += size
        return self._buffer[self._at - size : self._at]

    def skip(self, size: int) -> None:
        self.need(size)
        while size:
            step = min(size, _CHUNK_BYTES)
            self._fill(step)
            self._at += step
            size -= step

    def text(self) -> str:
        """Read a string; only the first ``_KEPT_TEXT_BYTES`` are returned."""
        size = self.u64()
        self.need(size)
        kept = self.take(min(size, _KEPT_TEXT_BYTES)).decode("utf-8", "replace")
        self.skip(max(0, size - _KEPT_TEXT_BYTES))
        return kept

    def skip_strings(self, count: int) -> None:
        self.need(count * _U64.size)
        # Inlined, since calls for each string of a vocabulary would dominate: 250,000 strings
        # take 75 ms, and 330 ms with skip(u64()) alone.
        while count:
            buffer, at, last = self._buffer, self._at, len(self._buffer) - _U64.size
            while count and at <= last:
                after = at + _U64.size + _U64.unpack_from(buffer, at)[0]
                if after > len(buffer):
                    break
                at, count = after, count - 1
            self._at = at
            if count:
                self.skip(self.u64())
                count -= 1
