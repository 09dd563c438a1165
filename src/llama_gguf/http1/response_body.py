"""Where the body of llama-server's response ends, and how the client receives it.

The decision behind ``gateway/upstream_connection.py``: bytes go in, bytes come out. A body is
followed, not decoded, unless the client cannot read its coding.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.http1.chunked import LAST_CHUNK, ChunkedBody, frame
from llama_gguf.http1.fields import Framing

_CHUNKED: Final = Framing.CHUNKED
_CLOSE: Final = Framing.CLOSE
_LENGTH: Final = Framing.LENGTH


class ResponseBody:
    """The body of one response.

    Args:
        framing: what marks its end (RFC 9112 section 6.3).
        length: its Content-Length; ignored where the framing is another.
        reads_chunks: False for a client of HTTP/1.0, which receives a chunked body decoded. Any
            other receives a body that ends with its connection in chunks, to see it whole.
    """

    __slots__ = ("_chunked", "_is_until_close", "_reads_chunks", "_remaining")

    def __init__(self, framing: Framing, length: int, *, reads_chunks: bool) -> None:
        self._chunked = ChunkedBody() if framing is _CHUNKED else None
        self._is_until_close = framing is _CLOSE
        self._remaining = length if framing is _LENGTH else 0
        self._reads_chunks = reads_chunks

    @property
    def is_complete(self) -> bool:
        if self._chunked is not None:
            return self._chunked.is_done
        return not self._is_until_close and self._remaining == 0

    @property
    def is_between_chunks(self) -> bool:
        """Whether a chunk has ended here, so that another chunk or event may be inserted."""
        return self._chunked is not None and self._chunked.is_between_chunks

    @property
    def is_relayed(self) -> bool:
        """Whether the client receives the body's chunks as they are."""
        return self._reads_chunks and self._chunked is not None

    @property
    def tail(self) -> bytes:
        """The last bytes of a chunked body, up to ``TAIL_BYTES`` of them."""
        return b"" if self._chunked is None else self._chunked.tail

    def follow_chunks(self, tail: bytes) -> None:
        """Whole chunks were relayed without ``feed``, and the last of them ended in *tail*."""
        if self._chunked is not None:
            self._chunked.tail = tail

    def feed(self, data: bytes) -> tuple[int, bytes]:
        """Follow *data*, the next bytes of the connection.

        Returns:
            The number of bytes that belong to the body, fewer than all only if it ended within
            them; and what the client receives for them.

        Raises:
            ChunkedError: *data* is not in the chunked coding.
        """
        chunked = self._chunked
        if chunked is not None:
            if not self._reads_chunks:
                decoded = bytearray()
                return chunked.feed(data, decoded), bytes(decoded)
            taken = chunked.feed(data)
        elif self._is_until_close:
            return len(data), frame(data) if self._reads_chunks and data else data
        else:
            taken = min(self._remaining, len(data))
            self._remaining -= taken
        return taken, data if taken == len(data) else data[:taken]

    def end(self) -> bytes | None:
        """The connection has ended without an error.

        Returns:
            What the client receives for the end of the body; None if the body is not whole.
        """
        if not self._is_until_close:
            return None
        return LAST_CHUNK if self._reads_chunks else b""
