"""The life of one exchange: a request and its response.

Rule 1: every state and every transition is in ``TRANSITIONS``; the protocol
classes hold buffers and timers, never a second opinion about the state.

Rule 2: nothing here knows of sockets. ``on(event)`` either moves or raises.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


# IntEnum, since the hash of a plain Enum's member is a Python call: six of them a request.
class State(enum.IntEnum):
    READING = 0  # the head is read; the body is coming in
    QUEUED = 1  # waits for a slot
    FORWARDING = 2  # has what it needs; with the upstream, or connecting to it
    STREAMING = 3  # the response head is out: its status is final
    DONE = 4  # the response is complete; the connection may be reused
    ABORTED = 5  # somebody left before it was


class Event(enum.IntEnum):
    QUEUE = 0  # no slot is free
    FORWARD = 1  # a slot is granted, or none is needed
    HEAD_SENT = 2
    RESPONSE_SENT = 3
    LOST = 4  # the client left, or the upstream did after the head


S, E = State, Event
TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (S.READING, E.QUEUE): S.QUEUED,
    (S.READING, E.FORWARD): S.FORWARDING,
    (S.QUEUED, E.FORWARD): S.FORWARDING,
    (S.FORWARDING, E.HEAD_SENT): S.STREAMING,
    (S.STREAMING, E.RESPONSE_SENT): S.DONE,
    # An answer of our own (401, 413, 429, 503, 504) may cut in before the head.
    (S.READING, E.HEAD_SENT): S.STREAMING,
    (S.QUEUED, E.HEAD_SENT): S.STREAMING,
    # Whoever leaves does so at any time, but an end stays what it was.
    (S.READING, E.LOST): S.ABORTED,
    (S.QUEUED, E.LOST): S.ABORTED,
    (S.FORWARDING, E.LOST): S.ABORTED,
    (S.STREAMING, E.LOST): S.ABORTED,
}

PHASES: Final[Mapping[State, str]] = {
    S.READING: "request",
    S.QUEUED: "queued",
    S.FORWARDING: "before_first_byte",
    S.STREAMING: "streaming",
}
"""What metrics and the access log call the state in which a client left."""


class IllegalTransition(Exception):
    """A bug in the gateway, never a fault of the client."""


class Exchange:
    """Where one exchange stands, and what there will be to say of it when it is over.

    Times are seconds on the loop's clock; 0.0 means that it did not come to that.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "first_byte_at",
        "forwarded_at",
        "key_id",
        "method",
        "outcome",
        "path",
        "queued_at",
        "request_id",
        "route",
        "started_at",
        "state",
        "status",
    )

    def __init__(self, started_at: float, method: str, path: str, request_id: str) -> None:
        self.state = State.READING
        self.started_at = started_at
        self.method = method
        self.path = path
        self.request_id = request_id
        self.route = "refused"
        self.key_id = "-"
        self.queued_at = 0.0
        self.forwarded_at = 0.0
        self.first_byte_at = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.status = 0
        self.outcome = "done"

    def on(self, event: Event) -> State:
        """Move on *event* and return the new state.

        Raises:
            IllegalTransition: *event* cannot happen in the present state.
        """
        try:
            self.state = state = TRANSITIONS[self.state, event]
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
        return self.state < State.STREAMING
