"""Whose content each slot has, as far as it can be known.

llama-server does not report which slot worked on a request. What is known: the keys of the requests
that were sent to it, and, at each look, the number of the last task of each slot. A slot whose task
is another one than at the last look has the content of one of the keys that were active since then.
A file has all of these keys as owners, so that none of their content outlives its key.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from llama_gguf.values import Value

UNKNOWN: Final = "?"
"""Instead of the keys that a gateway did not report before its death."""


class SlotView(Value):
    """A slot, as ``GET /slots`` has it."""

    id: int
    is_busy: bool
    task: int | None
    """The number of the last request that it worked on; None if there was none since the start."""
    tokens: int | None
    """That it holds; None if unknown."""


class Attribution:
    """Of one life of an engine."""

    def __init__(self) -> None:
        self._active: set[str] = set()
        """The keys that were active since the last look at which nothing ran."""
        self._owners: dict[int, frozenset[str]] = {}
        self._seen: dict[int, int | None] = {}
        """By slot, the task at the last look at which it was idle."""
        self._recent: set[int] = set()
        """The slots whose task was noted since ``settle``: its key may be reported later."""
        self._saved: dict[int, int | None] = {}
        """By slot, the task whose result is on disk."""

    def on_owners(self, owners: Collection[str]) -> None:
        """Requests of these keys have been sent since the last report."""
        self._active |= set(owners)

    def restored(self, slots: Sequence[SlotView]) -> None:
        """Nothing has been sent yet: what the slots hold is on disk."""
        self._active.clear()
        self._owners.clear()
        self._recent.clear()
        self._seen = {slot.id: slot.task for slot in slots}
        self._saved = dict(self._seen)

    def look(self, slots: Sequence[SlotView], *, is_quiet: bool) -> list[SlotView]:
        """Note what the slots have worked on; return those that can be saved, most recent first.

        Args:
            slots: all of them.
            is_quiet: whether no request runs. The last that have run may not be reported yet.
        """
        self.settle()  # if it was not done meanwhile
        for slot in slots:
            if slot.task != self._seen.get(slot.id):
                self._owners[slot.id] = frozenset(self._active)
                if not slot.is_busy:
                    self._seen[slot.id] = slot.task
                    self._recent.add(slot.id)
        if is_quiet and not any(slot.is_busy for slot in slots):
            self._active.clear()
        changed = [
            slot
            for slot in slots
            if not slot.is_busy
            and slot.task is not None
            and slot.task != self._saved.get(slot.id)
            and slot.tokens != 0
        ]
        return sorted(changed, key=lambda slot: slot.task or 0, reverse=True)

    def settle(self) -> None:
        """All keys of requests that had run at the last look have been reported."""
        for slot in self._recent:
            self._owners[slot] |= self._active
        self._recent.clear()

    def owners_of(self, slot: SlotView) -> tuple[str, ...]:
        """The keys of which one has sent the content of *slot*, as it was at the last look."""
        return tuple(sorted(self._owners.get(slot.id, frozenset()) | self._active))

    def on_saved(self, slot: SlotView) -> None:
        """The content of *slot* is on disk, or is not to be."""
        self._saved[slot.id] = slot.task
