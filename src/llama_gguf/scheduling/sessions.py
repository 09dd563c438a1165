"""Which engine has the prompt of a session in its cache.

A session is a conversation, as a number. The table is bounded: the session that has been silent for
longest is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

NO_SESSION: Final = 0
"""Of a request that any engine may work on."""
NO_ENGINE: Final = 0
MAX_SESSIONS: Final = 100_000
"""Of 150 bytes each. Caches hold far fewer, so that those forgotten have lost theirs."""


class SessionTable:
    """Sessions, and the numbers of their engines.

    A number is never used again. So an engine that is gone needs no search for its sessions.
    """

    __slots__ = ("_engines", "_max")

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._engines: OrderedDict[int, int] = OrderedDict()
        self._max = max_sessions

    def __len__(self) -> int:
        return len(self._engines)

    def use(self, session: int) -> int:
        """The number of its engine, for a request that has arrived; NO_ENGINE if it has none."""
        number = self._engines.get(session, NO_ENGINE)
        if number:
            self._engines.move_to_end(session)
        return number

    def engine_of(self, session: int) -> int:
        """The number of its engine; NO_ENGINE if it has none."""
        return self._engines.get(session, NO_ENGINE)

    def pin(self, session: int, number: int) -> None:
        """From now on, *session* is at the engine of this *number*."""
        engines = self._engines
        if session in engines:
            engines.move_to_end(session)
        elif len(engines) >= self._max:
            engines.popitem(last=False)
        engines[session] = number
