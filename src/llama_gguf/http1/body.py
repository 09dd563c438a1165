"""A request's body, which is read completely before it is forwarded."""

from __future__ import annotations

from llama_gguf.errors import BadRequest
from llama_gguf.http1.chunked import ChunkedBody, ChunkedError


class IncomingBody:
    """One body.

    Args:
        length: its Content-Length; None when it is chunked.
    """

    __slots__ = ("_chunked", "data", "remaining")

    def __init__(self, length: int | None) -> None:
        self._chunked = ChunkedBody() if length is None else None
        # One buffer, no list of pieces: a body sent byte by byte would take fifty times its size.
        self.data = bytearray()
        self.remaining = length or 0
        """Bytes still to arrive; 0 if the body is chunked."""

    def feed(self, data: bytes) -> bytes | None:
        """Add *data*.

        Returns:
            What follows the body, once it is complete; None before.

        Raises:
            BadRequest: it is not in the chunked coding.
        """
        if self._chunked is not None:
            return self._feed_chunked(self._chunked, data)
        self.data += data[: self.remaining]
        rest = data[self.remaining :]
        self.remaining -= len(data) - len(rest)
        return None if self.remaining else rest

    def _feed_chunked(self, chunked: ChunkedBody, data: bytes) -> bytes | None:
        try:
            taken = chunked.feed(data, self.data)
        except ChunkedError as error:
            raise BadRequest(f"The request body cannot be read: {error}.") from None
        return data[taken:] if chunked.is_done else None
