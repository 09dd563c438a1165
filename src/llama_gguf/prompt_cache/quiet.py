"""When it is a good moment to save: no request runs, and none has for a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

QUIET_SECONDS: Final = 5.0
MIN_NEW_TOKENS: Final = 128
"""Tokens of prompts that have been computed since a slot was saved, for it to be saved at a quiet
moment; fewer are computed again soon, after a crash."""
MIN_GROWTH: Final = 0.25
"""Their least part of what the slot holds: a file is written as a whole, and a long conversation is
not to be written with each of its turns."""


class QuietWatch:
    """Detects the first quiet moment after responses."""

    def __init__(self) -> None:
        self._responses = 0
        """At the last quiet moment that was used."""
        self._since: float | None = None
        self._counted = 0

    def check(self, *, running: int, responses: int, now: float) -> bool:
        """Whether this is one; each is reported once.

        Args:
            running: requests at the engine.
            responses: a counter of those that it has responded to.
            now: on a clock that never runs backwards.
        """
        if running or responses != self._counted:
            self._since, self._counted = now, responses
            return False
        if responses == self._responses or self._since is None:
            return False
        if now - self._since < QUIET_SECONDS:
            return False
        self._responses = responses
        return True


class Growth:
    """How many tokens of prompts have been computed since each slot was saved, at most.

    llama-server counts those of all slots together, so with several slots that have changed, each
    may have all of them.
    """

    def __init__(self) -> None:
        self._total = 0
        self._by_slot: Counter[int] = Counter()

    def look(self, total: int, changed: Iterable[int]) -> None:
        """Note the engine's counter *total*; *changed* are the slots that are not on disk."""
        new, self._total = max(total - self._total, 0), total
        for slot in changed:
            self._by_slot[slot] += new

    def is_worth_saving(self, slot: int, tokens: int) -> bool:
        """Whether *slot*, which has *tokens* now, is saved at a quiet moment."""
        return self._by_slot[slot] >= max(MIN_NEW_TOKENS, MIN_GROWTH * tokens)

    def on_saved(self, slot: int) -> None:
        del self._by_slot[slot]
