"""The first and the last bytes of a response, kept as they pass for counting its tokens.

``token_usage.py`` reads them when the response is over. Memory is bounded: some KB for a response
of any length, since a copy of the whole would cost more than to relay it.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.telemetry.token_usage import ENDING_BYTES, OPENING_BYTES

_EVENT: Final = b"data:"


class ResponseWindow:
    """The windows on one response body.

    For a whole chunk in one read, the caller moves ``last_chunk`` to ``before_last`` and sets it,
    without a call and without a copy: an event of a stream is relayed that way. For anything else
    it calls ``join_chunks`` and ``add``.
    """

    __slots__ = ("_earlier", "before_last", "is_event_stream", "last_chunk", "opening")

    def __init__(self, *, is_event_stream: bool) -> None:
        self.is_event_stream = is_event_stream
        self.opening = b""
        """The first bytes with content."""
        self.last_chunk = b""
        """The last bytes, if they are a whole chunk that arrived in one read."""
        self.before_last = b""
        """The chunk before that."""
        self._earlier = b""
        """The last bytes before these two."""

    @property
    def ending(self) -> bytes:
        """The last bytes, at least ``ENDING_BYTES`` of them if there are as many."""
        return self._earlier + self.before_last + self.last_chunk

    def join_chunks(self) -> None:
        """Bytes that are no whole chunk follow."""
        if self.last_chunk:
            self._add_last(self.before_last + self.last_chunk)
            self.before_last = self.last_chunk = b""

    def add(self, data: bytes) -> bool:
        """Keep *data*. Returns whether the content begins with it."""
        begins = not self.opening and (not self.is_event_stream or _EVENT in data)
        if begins:  # llama-server sends comments before: they have no content
            self.opening = data[:OPENING_BYTES]
        elif self.opening and len(self.opening) < OPENING_BYTES:
            # The first event may arrive in two reads, with its usage in the second.
            self.opening += data[: OPENING_BYTES - len(self.opening)]
        self._add_last(data)
        return begins

    def _add_last(self, data: bytes) -> None:
        # Earlier bytes stay: an event that arrived in two reads may have the token counts.
        self._earlier = data if len(data) >= ENDING_BYTES else self._earlier[-ENDING_BYTES:] + data
