"""The states of one exchange: a request and its response.

Rule 1: every state and every transition is in ``TRANSITIONS``. The protocol classes hold buffers
and timers, and no flag that a state already implies.

Rule 2: no sockets and no clock. ``on(event)`` either changes the state or raises.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from llama_gguf.errors import IllegalTransition
from llama_gguf.http1.exchange_record import DisconnectPhase, ExchangeRecord

if TYPE_CHECKING:
    from llama_gguf.http1.stream_member import StreamSearch


# IntEnum: the hash of a plain Enum's member is a Python call, and each request makes six look-ups.
class State(enum.IntEnum):
    READING = 0  # the head has been read; the body is being read
    QUEUED = 1  # waiting for a slot
    FORWARDING = 2  # with the upstream, or connecting to it; the client has received nothing
    # The same two for a stream whose head has been sent ahead of the engine's, by the gateway or by
    # an engine that failed, followed by comments as keep-alive: its status is final.
    AHEAD_QUEUED = 3
    AHEAD_FORWARDING = 4
    STREAMING = 5  # the response head has been sent: its status is final
    DONE = 6  # the response is complete; the connection may be reused
    ABORTED = 7  # client or upstream disconnected before that


class Event(enum.IntEnum):
    QUEUE = 0  # no slot is free
    FORWARD = 1  # a slot is granted, or none is needed
    HEAD_SENT = 2  # the head of the engine's response
    RESPONSE_SENT = 3  # its last byte
    LOST = 4  # the client disconnected, or the upstream did after the head
    SEND_HEAD_AHEAD = 5  # the gateway sends a stream's head ahead of the engine's
    BEGIN = 6  # the engine's response to such a stream begins
    REQUEUE = 7  # the engine failed, and the client has received nothing of the response's body
    RESPONDED = 8  # a complete response is sent in one piece, head included


S, E = State, Event
TRANSITIONS: Final[dict[Event, dict[State, State]]] = {
    E.QUEUE: {S.READING: S.QUEUED},
    E.REQUEUE: {
        S.FORWARDING: S.QUEUED,
        S.AHEAD_FORWARDING: S.AHEAD_QUEUED,
        # The head of a stream has been sent. The next engine's head is checked, and not sent.
        S.STREAMING: S.AHEAD_QUEUED,
    },
    E.FORWARD: {
        S.READING: S.FORWARDING,
        S.QUEUED: S.FORWARDING,
        S.AHEAD_QUEUED: S.AHEAD_FORWARDING,
    },
    E.SEND_HEAD_AHEAD: {S.QUEUED: S.AHEAD_QUEUED, S.FORWARDING: S.AHEAD_FORWARDING},
    E.HEAD_SENT: {S.FORWARDING: S.STREAMING},
    E.RESPONDED: {
        S.FORWARDING: S.DONE,
        # The gateway's own responses (401, 413, 429, 503, 504) are sent from these states, too.
        S.READING: S.DONE,
        S.QUEUED: S.DONE,
    },
    E.BEGIN: {S.AHEAD_FORWARDING: S.STREAMING},
    E.RESPONSE_SENT: {S.STREAMING: S.DONE},
    # A peer can disconnect at any time; a final state stays as it is.
    E.LOST: {
        S.READING: S.ABORTED,
        S.QUEUED: S.ABORTED,
        S.FORWARDING: S.ABORTED,
        S.AHEAD_QUEUED: S.ABORTED,
        S.AHEAD_FORWARDING: S.ABORTED,
        S.STREAMING: S.ABORTED,
    },
}
"""By event, the states in which it can happen, and the state that follows."""

PHASES: Final[Mapping[State, DisconnectPhase]] = {
    S.READING: "request",
    S.QUEUED: "queued",
    S.FORWARDING: "before_first_byte",
    S.AHEAD_QUEUED: "queued",
    S.AHEAD_FORWARDING: "before_first_byte",
    S.STREAMING: "streaming",
}
"""Of the states in which a client can disconnect."""


class Exchange(ExchangeRecord):
    """The state of one exchange, and the resources that it holds, beside its record."""

    # Defaults on the class, as in ExchangeRecord.
    state = State.READING
    rate_fields = b""
    """Header lines for the response: the rate limit of its key, and what remains of it."""
    has_retried = False
    is_counted = False
    """Whether its key's rate window counts it."""
    has_budget = False
    """Whether its key has a budget, of which an estimate is reserved when its body is whole."""
    stream_search: StreamSearch | None = None
    """The search of its body for ``"stream": true``; None until it has waited SSE_KEEPALIVE."""
    reserved_bytes = 0
    """In the memory for bodies."""

    def on(self, event: Event) -> State:
        """Apply *event* and return the new state.

        Raises:
            IllegalTransition: *event* cannot happen in the current state.
        """
        try:
            self.state = state = TRANSITIONS[event][self.state]
        except KeyError:
            raise IllegalTransition(f"{event.name} while {self.state.name}") from None
        return state

    @property
    def may_reply(self) -> bool:
        """Whether a status line can still be sent.

        Once it cannot, a failure is reported by cutting the connection: the client then detects
        a truncated body. With an error appended to it, the body would look complete.
        """
        return self.state < State.AHEAD_QUEUED

    @property
    def is_head_ahead(self) -> bool:
        """Whether a stream's head has been sent, and no engine has begun the stream."""
        return self.state in (State.AHEAD_QUEUED, State.AHEAD_FORWARDING)

    @property
    def waits_since(self) -> float:
        """When it began to wait for a slot or for the engine; 0.0 while its body is being read."""
        return self.queued_at or self.forwarded_at
