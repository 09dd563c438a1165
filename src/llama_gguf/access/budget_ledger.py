"""The budgets of all keys, as text and as values.

Text outlives the process. Several processes may count into one file: each knows what it has added
since its last write (``take_unsaved``), adds that to the current content (``merge``), and continues
from the sum (``rebase``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final

from llama_gguf.access.token_budget import (
    NAMES,
    NewShare,
    TokenBudget,
    add,
    apply,
    no_counts,
)

MAX_KEYS: Final = 10_000
"""In the file, those that have used something most recently. Ids come from the keys file, but keys
that are no longer in it are kept too: a key that is removed and added again continues."""
FOLDER: Final = "budgets"
"""In DATA_DIR, with a file per instance."""
LINES_PER_PAUSE: Final = 64
FORMAT: Final = 1

# The layout of ``dump``: lines that can be read one by one.
_BEFORE_KEYS: Final = f'{{"format":{FORMAT},"keys":{{\n'
_AFTER_KEYS: Final = "\n}}"
_AMOUNTS: Final = r'\{{(?:"{0}":[0-9]{{1,18}}(?:,"{0}":[0-9]{{1,18}})*)?\}}'
_PERIODS: Final = ("-?[0-9]{1,12}", "-?[0-9]{1,12}", "[0-9]{1,5}", "-?[0-9]{1,12}")
"""Of each window; a month of more digits is after the last year of ``datetime``."""
_NUMBERS: Final = ",".join(
    f'"{name}":{_AMOUNTS.format(period)}' for name, period in zip(NAMES, _PERIODS, strict=True)
)
_LINE: Final = rf'"([A-Za-z0-9_-]{{1,64}})":(\{{{_NUMBERS}\}}),?'


class BudgetLedger:
    """By key id, what was used of each budget.

    Args:
        has_changes: whether it has what is to be added to another one, and may be negative.
        new_share: as of ``TokenBudget``.
    """

    def __init__(self, *, has_changes: bool = False, new_share: NewShare | None = None) -> None:
        self._has_changes = has_changes
        self._new_share = new_share
        self._by_key: dict[str, TokenBudget] = {}
        self._changed: dict[str, TokenBudget] = {}

    def of(self, key_id: str) -> TokenBudget:
        """The budget of the key with this id."""
        budget = self._by_key.get(key_id)
        if budget is None:
            budget = TokenBudget(key_id, self._changed, self._new_share)
            self._by_key[key_id] = budget
        return budget

    def key_ids(self) -> list[str]:
        """Of the keys that have, or had, a budget and have been used; sorted."""
        return sorted(self._by_key)

    def known(self, key_id: str) -> TokenBudget | None:
        """As ``of``; None if nothing is known of it."""
        return self._by_key.get(key_id)

    @property
    def has_changed(self) -> bool:
        """Since the last ``take_unsaved``."""
        return bool(self._changed)

    def take_unsaved(self) -> BudgetLedger | None:
        """What was added since the last call, as a ledger of changes; None if nothing was."""
        if not self._changed:
            return None
        taken = BudgetLedger(has_changes=True)
        for key_id, budget in self._changed.items():
            taken.of(key_id).counts = budget.unsaved
            budget.unsaved = no_counts()
        self._changed.clear()
        return taken

    def merge(self, other: BudgetLedger, _now: float) -> None:
        """Add the changes in *other*, which count as saved."""
        for key_id, changes in other._by_key.items():
            budget = self.of(key_id)
            budget.text = ""
            if self._has_changes:
                add(budget.counts, changes.counts)
            else:
                apply(budget.counts, changes.counts)

    def rebase(self, saved: BudgetLedger, _now: float) -> None:
        """Continue from *saved*, which has what was taken, but not what was added since."""
        for key_id, budget in saved._by_key.items():
            self.of(key_id).replace(budget.counts)

    def open(self) -> None:
        """All numbers are parsed already."""

    def prepare(self) -> Iterator[None]:
        """Make the text of what has changed, a few keys per step: ``dump`` then takes little."""
        changed = [budget for budget in self._by_key.values() if not budget.text]
        for number, budget in enumerate(changed, 1):
            _text_of(budget)
            if not number % LINES_PER_PAUSE:
                yield

    def dump(self) -> str:
        """All counts as text."""
        budgets = list(self._by_key.values())
        if len(budgets) > MAX_KEYS:
            budgets = sorted(budgets, key=_last_month)[-MAX_KEYS:]
        lines = [f'"{budget.key_id}":{_text_of(budget)}' for budget in budgets]
        return "".join((_BEFORE_KEYS, ",\n".join(lines), _AFTER_KEYS))

    @classmethod
    def load(cls, text: str, pause: Callable[[], None] | None = None) -> BudgetLedger:
        """Undo ``dump``.

        Args:
            text: of a file.
            pause: called every ``LINES_PER_PAUSE`` lines, to let other threads run.

        Raises:
            ValueError: it was not written by ``dump``.
        """
        if not text.startswith(_BEFORE_KEYS) or not text.endswith(_AFTER_KEYS):
            raise ValueError("it is not a file of budgets, or one of another version")
        ledger = cls()
        lines = text[len(_BEFORE_KEYS) : -len(_AFTER_KEYS)]
        for number, line in enumerate(lines.split("\n") if lines else (), 1):
            if pause is not None and not number % LINES_PER_PAUSE:
                pause()
            found = re.fullmatch(_LINE, line)
            if found is None:
                raise ValueError("it contains an invalid line")
            numbers = json.loads(found[2])
            ledger.of(found[1]).counts = [
                {int(period): amount for period, amount in numbers[name].items()} for name in NAMES
            ]
        return ledger


def _text_of(budget: TokenBudget) -> str:
    if not budget.text:
        counts = dict(zip(NAMES, budget.counts, strict=True))
        budget.text = json.dumps(counts, separators=(",", ":"))
    return budget.text


def _last_month(budget: TokenBudget) -> int:
    return max(budget.counts[2], default=0)
