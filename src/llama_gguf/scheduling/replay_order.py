"""The order in which requests are sent again after an engine has failed them: one at a time.

If one of them ends the next engine too, it is known which, and the others lose nothing. A request
holds up the next one until its response begins, until it ends, or until it has run for as long as
it had when the engine failed: later it is unlikely to do harm. It holds them up for less where the
last of them could otherwise not be sent before its time to wait is over.

Once a request has ended two engines, those of other keys come before those of its key, so that a
key with many of them does not delay the others by a restart for each.
"""

from __future__ import annotations

from collections.abc import Callable


class ReplayOrder:
    """The requests that are to be sent again, in the order in which they failed."""

    __slots__ = ("_blamed", "_waiting", "first")

    def __init__(self) -> None:
        self.first: object = None
        """The request whose turn it is; None if none holds up others."""
        self._waiting: dict[object, tuple[str, Callable[[], None]]] = {}
        self._blamed: set[str] = set()
        """Keys whose requests come last; none once no request waits."""

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, request: object, key_id: str, on_turn: Callable[[], None]) -> None:
        """Call *on_turn* when it is the turn of *request* of *key_id*, which may be at once.

        A request whose turn it is has failed again: it waits behind the others.
        """
        if request is self.first:
            self.leave(request)
        if self.first is None:
            self.first = request
            on_turn()
        else:
            self._waiting[request] = (key_id, on_turn)

    def blame(self, key_id: str) -> None:
        """A request of *key_id* has ended two engines."""
        self._blamed.add(key_id)

    def leave(self, request: object) -> None:
        """It need not, or cannot, hold up the others any longer."""
        if request is not self.first:
            self._waiting.pop(request, None)
            return
        self.first = self._next()
        if self.first is not None:
            _, on_turn = self._waiting.pop(self.first)
            on_turn()

    def _next(self) -> object:
        for request, (key_id, _) in self._waiting.items():
            if key_id not in self._blamed:
                return request
        if not self._waiting:
            self._blamed.clear()
        return next(iter(self._waiting), None)
