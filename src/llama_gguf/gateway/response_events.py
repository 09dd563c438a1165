"""A stream of Responses that begins before the engine's (RESPONSES_KEEPALIVE=events).

Clients of Responses do not count comments as a sign of life, but events. So a stream that waits is
sent ``response.created``, and then ``response.in_progress``, with an id that the gateway chooses.
Of the engine's stream, the events that say the same are left out, and its id is replaced.
"""

from __future__ import annotations

import json
import re
from typing import Final

from llama_gguf.http1.chunked import LAST_CHUNK, frame
from llama_gguf.net.transport import Transport

_EVENT_END: Final = b"\n\n"
_SENT_BEFORE: Final = (b"event: response.created\n", b"event: response.in_progress\n")
_ID: Final = rb'"id": ?("resp[_-][A-Za-z0-9_-]{1,200}")'


def response_id(request_id: str) -> str:
    """Of the stream that the gateway begins."""
    return f"resp_{request_id}"


def waiting_event(name: str, *, request_id: str, model: str) -> bytes:
    """The event *name*, ``created`` or ``in_progress``.

    Source: https://platform.openai.com/docs/api-reference/responses-streaming.
    """
    response = {
        "id": response_id(request_id),
        "object": "response",
        "status": "in_progress",
        "model": model,
        "output": [],
    }
    data = json.dumps({"type": f"response.{name}", "response": response}).encode()
    return b"event: response.%b\ndata: %b\n\n" % (name.encode(), data)


class ResponseRelay(Transport):
    """Takes the body of the engine's stream, decoded, and sends its events to the client.

    Args:
        transport: of the client.
        own_id: the id that the client has been sent.
        reads_chunks: False for a client of HTTP/1.0.
    """

    __slots__ = ("_engine_id", "_own_id", "_partial", "_reads_chunks", "_transport")

    def __init__(self, transport: Transport, own_id: str, *, reads_chunks: bool) -> None:
        self._transport = transport
        self._own_id = json.dumps(own_id).encode()
        self._reads_chunks = reads_chunks
        self._engine_id = b""
        self._partial = b""
        """Of an event that is not whole."""

    def write(self, data: bytes) -> None:
        self._partial += data
        end = self._partial.rfind(_EVENT_END)
        if end < 0:
            return
        whole, self._partial = self._partial[: end + 2], self._partial[end + 2 :]
        events = whole.split(_EVENT_END)[:-1]
        kept = b"".join(self._with_own_id(event) for event in events)
        if kept:
            self._transport.write_now(frame(kept) if self._reads_chunks else kept)

    def write_now(self, data: bytes) -> None:
        self.write(data)

    def _with_own_id(self, event: bytes) -> bytes:
        if event.startswith(_SENT_BEFORE):
            found = re.search(_ID, event)
            if found is not None:
                self._engine_id = found[1]
            return b""
        if self._engine_id:
            event = event.replace(self._engine_id, self._own_id)
        return event + _EVENT_END

    def finish(self) -> None:
        """The engine has ended its stream."""
        rest, self._partial = self._partial, b""
        if self._reads_chunks:
            self._transport.write((frame(rest) if rest else b"") + LAST_CHUNK)
        elif rest:
            self._transport.write(rest)
