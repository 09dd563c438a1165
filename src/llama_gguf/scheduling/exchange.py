"""The states of one exchange: a request and its response.

Rule 1: every state and every transition is in ``TRANSITIONS``; the protocol
classes hold buffers and timers, never a second opinion about the state.

Rule 2: nothing here knows of sockets. ``on(event)`` either moves or raises.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from llama_gguf.errors import IllegalTransition

if TYPE_CHECKING:
    from llama_gguf.http1.request import Request
    from llama_gguf.http1.stream_member import StreamSearch
    from llama_gguf.scheduling.admission import Admission
    from llama_gguf.telemetry.token_usage import Usage


# IntEnum, since the hash of a plain Enum's member is a Python call: six of them a request.
class State(enum.IntEnum):
    READING = 0  # the head is read; the body is coming in
    QUEUED = 1  # waits for a slot
    FORWARDING = 2  # has what it needs; with the upstream, or connecting to it
    # The two again, of a stream whose head and comments went out before the engine said anything.
    OPEN_QUEUED = 3
    OPEN_FORWARDING = 4
    STREAMING = 5  # the response head is out: its status is final
    DONE = 6  # the response is complete; the connection may be reused
    ABORTED = 7  # somebody left before it was


class Event(enum.IntEnum):
    QUEUE = 0  # no slot is free
    FORWARD = 1  # a slot is granted, or none is needed
    HEAD_SENT = 2
    RESPONSE_SENT = 3
    LOST = 4  # the client left, or the upstream did after the head
    OPEN = 5  # a stream is given its head ahead of the engine's
    BEGIN = 6  # the engine begins such a stream
    RESPONDED = 8  # a response is sent whole, at once
    REQUEUE = 7  # the engine took no connection: it has nothing of the request


S, E = State, Event
TRANSITIONS: Final[dict[Event, dict[State, State]]] = {
    E.QUEUE: {S.READING: S.QUEUED},
    E.REQUEUE: {S.FORWARDING: S.QUEUED, S.OPEN_FORWARDING: S.OPEN_QUEUED},
    E.FORWARD: {
        S.READING: S.FORWARDING,
        S.QUEUED: S.FORWARDING,
        S.OPEN_QUEUED: S.OPEN_FORWARDING,
    },
    E.OPEN: {S.QUEUED: S.OPEN_QUEUED, S.FORWARDING: S.OPEN_FORWARDING},
    E.HEAD_SENT: {S.FORWARDING: S.STREAMING},
    E.RESPONDED: {
        S.FORWARDING: S.DONE,
        # A response of the gateway's own (401, 413, 429, 503, 504) may cut in before the engine's.
        S.READING: S.DONE,
        S.QUEUED: S.DONE,
    },
    E.BEGIN: {S.OPEN_FORWARDING: S.STREAMING},
    E.RESPONSE_SENT: {S.STREAMING: S.DONE},
    # Whoever leaves does so at any time, but an end stays what it was.
    E.LOST: {
        S.READING: S.ABORTED,
        S.QUEUED: S.ABORTED,
        S.FORWARDING: S.ABORTED,
        S.OPEN_QUEUED: S.ABORTED,
        S.OPEN_FORWARDING: S.ABORTED,
        S.STREAMING: S.ABORTED,
    },
}
"""What happens, and where it leads from where."""

PHASES: Final[Mapping[State, str]] = {
    S.READING: "request",
    S.QUEUED: "queued",
    S.FORWARDING: "before_first_byte",
    S.OPEN_QUEUED: "queued",
    S.OPEN_FORWARDING: "before_first_byte",
    S.STREAMING: "streaming",
}
"""What metrics and the access log call the state in which a client left."""


class Exchange:
    """Where one exchange stands, what it holds, and what there will be to say of it at its end.

    Times are seconds on the loop's clock; 0.0 means that it did not come to that.

    Args:
        started_at: when its head had come.
        request: its head.
        id_bytes: the request id, as it goes over the wire.
        address: of the client.
    """

    # Most exchanges leave most of these as they are, and on the class they cost nothing.
    key_id = "-"
    outcome = "done"
    status = 0
    bytes_in = 0
    bytes_out = 0
    queued_at = 0.0
    forwarded_at = 0.0
    first_byte_at = 0.0
    first_token_at = 0.0
    """Of a stream: llama-server begins to answer long before there is anything to say."""
    ended_at = 0.0
    """Set where it is known before the end is accounted for."""
    opening = b""
    """Of the engine's answer, the first bytes, where they are not in ``ending``."""
    ending = b""
    usage: Usage | None = None
    """What these two tell, once it is over."""
    rate_fields = b""
    """Lines for the answer's head: what its key may still do."""
    has_retried = False
    is_counted = False
    """Whether it is in its key's window."""
    stream_search: StreamSearch | None = None
    """Of its body, once it has waited for SSE_KEEPALIVE; None before."""
    # What has to be given back.
    runs_in: Admission | None = None
    """What granted it a slot."""
    waits_in: Admission | None = None
    """In whose queue it has a place."""
    reserved_bytes = 0

    def __init__(self, started_at: float, request: Request, id_bytes: bytes, address: str) -> None:
        self.state = State.READING
        self.started_at = started_at
        self.request = request
        self.id_bytes = id_bytes
        self.address = address

    def on(self, event: Event) -> State:
        """Move on *event* and return the new state.

        Raises:
            IllegalTransition: *event* cannot happen in the present state.
        """
        try:
            self.state = state = TRANSITIONS[event][self.state]
        except KeyError:
            raise IllegalTransition(f"{event.name} while {self.state.name}") from None
        return state

    @property
    def may_reply(self) -> bool:
        """Whether a status line can still be sent.

        Once it cannot, the only honest way to report a failure is to cut the
        connection, so that the client sees a truncated body and not a
        complete one with an error glued to its end.
        """
        return self.state < State.OPEN_QUEUED

    @property
    def is_open(self) -> bool:
        """Whether a stream's head went out, and the engine has not said anything."""
        return self.state in (State.OPEN_QUEUED, State.OPEN_FORWARDING)

    @property
    def waits_since(self) -> float:
        """When it began to wait: for a slot, or for the engine; 0.0 while it is being read."""
        return self.queued_at or self.forwarded_at

    # What the access log and the metrics say ------------------------------------------------------

    @property
    def request_id(self) -> str:
        return self.id_bytes.decode("ascii")

    @property
    def method(self) -> str:
        return self.request.head.method_text

    @property
    def path(self) -> str:
        return self.request.head.path_text

    @property
    def queued(self) -> float:
        """Seconds it waited for a slot."""
        return (self.forwarded_at or self.ended_at) - self.queued_at if self.queued_at else 0.0

    @property
    def first_byte(self) -> float:
        """Seconds from its start to the first byte of the engine's answer."""
        return self.first_byte_at - self.started_at if self.first_byte_at else 0.0

    @property
    def first_token(self) -> float:
        """Seconds from its start to the first event of a stream that says something."""
        return self.first_token_at - self.started_at if self.first_token_at else 0.0

    @property
    def duration(self) -> float:
        return self.ended_at - self.started_at
