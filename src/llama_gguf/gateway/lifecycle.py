"""The states of one gateway, from its start to its end."""

from __future__ import annotations

import enum
from typing import Final

from llama_gguf.transitions import after


class State(enum.StrEnum):
    STARTING = "starting"  # keys and usage are read; connections wait in the socket's backlog
    SERVING = "serving"  # requests are accepted
    DRAINING = "draining"  # new requests get 503; open ones may finish within DRAIN_TIMEOUT
    STOPPED = "stopped"  # every connection is closed, and the last lines are written


class Event(enum.StrEnum):
    LISTENS = "listens"
    STOP = "stop"  # SIGTERM, SIGINT, the supervisor is gone, or one of its tasks failed
    DRAINED = "drained"  # no request is open any more, or DRAIN_TIMEOUT is over


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.STARTING, Event.LISTENS): State.SERVING,
    (State.SERVING, Event.STOP): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.STOPPED,
}


class Lifecycle:
    """Where one gateway stands."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.STARTING

    def on(self, event: Event) -> None:
        """Move on *event*.

        Raises:
            IllegalTransition: *event* cannot happen in the present state.
        """
        self.state = after(TRANSITIONS, self.state, event)
