"""Which requests a ready replica gets, judged by what became of those that it had.

``limit`` is the number of requests that it may have at once; 0 while it gets none. What follows a
failure, the first case that applies:

1. Nothing: no other replica can take the requests. An engine's errors are passed on then, as with
   one engine, and a lost connection is looked into by the request itself.
2. EJECTED: the one request that it got on trial has failed; it is out for twice as long as before.
3. EJECTED: ``MAX_LOST`` connections in a row were lost, although it responds to its probe.
4. DOUBTED: a connection was lost. It gets nothing until it responds to its probe.
5. EJECTED: ``MAX_ERRORS`` responses in a row had a status from 500 on, while others had more good
   responses than bad ones. Where all have errors, the requests are the reason.
6. Nothing else follows.

An ejected replica is tried again by one request, after 1 s at first and 60 s at most, or at once if
no other replica can take requests. After a load under way of other requests, and after a trial, a
replica gets one request, and one more with each response, until it has as many as it has slots, or
until no request waits.

BUSY is no failure: a peer with its own queue has refused a request (429 or 503).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from llama_gguf.errors import IllegalTransition

MAX_LOST: Final = 3
MAX_ERRORS: Final = 5
FIRST_EJECTION_SECONDS: Final = 1.0
LONGEST_EJECTION_SECONDS: Final = 60.0
NO_LIMIT: Final = 1 << 30


class State(enum.Enum):
    SERVING = "serving"
    DOUBTED = "doubted"  # a connection was lost, and its probe has not responded yet
    BUSY = "busy"  # it has refused a request, and takes the next one later
    EJECTED = "ejected"  # its requests failed
    TRIAL = "trial"  # one request shows whether they still do


class Event(enum.Enum):
    LOST = enum.auto()
    ALIVE = enum.auto()  # its probe has responded
    REFUSED = enum.auto()
    EJECT = enum.auto()
    DUE = enum.auto()  # its time is over, or there is no other replica
    RESPONDED = enum.auto()
    LOADED = enum.auto()


_S = State
_E = Event
TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (_S.SERVING, _E.LOST): _S.DOUBTED,
    (_S.SERVING, _E.REFUSED): _S.BUSY,
    (_S.SERVING, _E.EJECT): _S.EJECTED,
    (_S.DOUBTED, _E.ALIVE): _S.SERVING,
    (_S.DOUBTED, _E.EJECT): _S.EJECTED,
    (_S.BUSY, _E.DUE): _S.SERVING,
    (_S.BUSY, _E.EJECT): _S.EJECTED,
    (_S.EJECTED, _E.DUE): _S.TRIAL,
    (_S.TRIAL, _E.RESPONDED): _S.SERVING,
    (_S.TRIAL, _E.REFUSED): _S.BUSY,
    (_S.TRIAL, _E.EJECT): _S.EJECTED,
} | {(state, _E.LOADED): _S.SERVING for state in State}


class Standing:
    """Of one replica."""

    __slots__ = (
        "_ejections",
        "_errors",
        "_limit",
        "_lost",
        "_others",
        "is_watched",
        "state",
        "until",
    )

    def __init__(self) -> None:
        self.state = State.SERVING
        self.until = 0.0
        """When BUSY and EJECTED end."""
        self.is_watched = False
        """Whether a good response changes anything: an attribute, since each response reads it."""
        self._limit = NO_LIMIT
        self._lost = 0
        """Connections in a row."""
        self._errors = 0
        """Responses in a row."""
        self._others = 0
        """The good responses of others less their bad ones, before the first of ``_errors``."""
        self._ejections = 0
        """In a row."""

    def _on(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise IllegalTransition(f"{event.name} while {self.state.name}") from None

    def limit(self, slots: int) -> int:
        """How many requests a replica of *slots* may have at once."""
        match self.state:
            case State.SERVING:
                return min(slots, self._limit)
            case State.TRIAL:
                return min(slots, 1)
            case _:
                return 0

    # What happens -------------------------------------------------------------------------------

    def on_loaded(self, *, is_gradual: bool) -> None:
        """The engine has become ready; all that was before is over."""
        self._on(Event.LOADED)
        self._lost = self._errors = self._ejections = 0
        self._limit = 1 if is_gradual else NO_LIMIT
        self.is_watched = is_gradual

    def on_response(self, slots: int) -> None:
        """It has responded, with a status under 500."""
        self._lost = self._errors = 0
        if self.state is State.TRIAL:
            self._on(Event.RESPONDED)
            self._limit = 1
        if self._limit < slots and self.state is State.SERVING:
            self._limit += 1
        if self._limit >= slots:
            self._limit = NO_LIMIT
            self._ejections = 0
        self.is_watched = self._limit != NO_LIMIT or self.state is not State.SERVING

    def on_empty_queue(self) -> bool:
        """No request waits that could fall on it at once. Returns whether its limit has ended."""
        if self._limit == NO_LIMIT or self.state is not State.SERVING:
            return False
        self._limit = NO_LIMIT
        self.is_watched = bool(self._lost or self._errors or self._ejections)
        return True

    def on_lost(self, now: float, *, has_other: bool) -> bool:
        """A connection with a request was lost. Returns whether it was ejected."""
        if not has_other:
            return False  # 1
        if self.state is State.DOUBTED:
            return False  # the same incident
        self._lost += 1
        self.is_watched = True
        if self.state is State.TRIAL or self._lost >= MAX_LOST:
            return self._eject(now)  # 2, 3
        if self.state is State.SERVING:
            self._on(Event.LOST)  # 4
        return False

    def on_error(self, now: float, *, has_other: bool, others: int) -> bool:
        """It has responded with a status from 500 on. Returns whether it was ejected.

        Args:
            now: on the gateway's clock.
            has_other: whether another replica can take requests.
            others: the good responses of all others so far, less their bad ones.
        """
        if not has_other:
            return False  # 1
        if not self._errors:
            self._others = others
        self._errors += 1
        self.is_watched = True
        if self.state is State.TRIAL:
            return self._eject(now)  # 2
        if self._errors >= MAX_ERRORS and others > self._others:
            return self._eject(now)  # 5
        return False  # 6

    def _eject(self, now: float) -> bool:
        if self.state is State.EJECTED:
            return False
        self._on(Event.EJECT)
        self.until = now + min(
            FIRST_EJECTION_SECONDS * 2.0 ** min(self._ejections, 10), LONGEST_EJECTION_SECONDS
        )
        self._ejections += 1
        self._lost = self._errors = 0
        return True

    def on_alive(self) -> None:
        """Its probe has responded, after a connection was lost."""
        if self.state is State.DOUBTED:
            self._on(Event.ALIVE)

    def on_refused(self, until: float) -> None:
        """It has refused a request, and takes the next one at *until*."""
        if self.state in (State.SERVING, State.TRIAL):
            self._on(Event.REFUSED)
            self.until = until
        elif self.state is State.BUSY:
            self.until = max(self.until, until)

    def on_time(self, now: float) -> bool:
        """Returns whether a time is over at *now*."""
        if self.state in (State.BUSY, State.EJECTED) and now >= self.until:
            self._on(Event.DUE)
            return True
        return False

    def on_needed(self) -> bool:
        """No other replica can take requests. Returns whether it is tried before its time."""
        if self.state is not State.EJECTED:
            return False
        self._on(Event.DUE)
        return True
