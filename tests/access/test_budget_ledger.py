from __future__ import annotations

import pytest

from llama_gguf.access.attributes import Attributes
from llama_gguf.access.budget_ledger import LINES_PER_PAUSE, MAX_KEYS, BudgetLedger
from llama_gguf.access.token_budget import TOKENS_PER_MONTH

NOW = 1_800_000_000.0
LIMITS = Attributes(tokens_per_minute=100, tokens_per_day=100, engine_seconds_per_day=10)


def spend(ledger: BudgetLedger, key_id: str, tokens: int, now: float = NOW) -> None:
    budget = ledger.of(key_id)
    reserved = budget.reserve(tokens, now, now)
    budget.settle(reserved, tokens, tokens, now=now, wall=now)


def used(ledger: BudgetLedger, key_id: str, now: float = NOW) -> list[float]:
    budget = ledger.of(key_id)
    budget.limit(LIMITS)
    return [state.used for state in budget.states(now, now)]


def restarted(ledger: BudgetLedger) -> BudgetLedger:
    next_one = BudgetLedger()
    next_one.rebase(BudgetLedger.load(ledger.dump()), NOW)
    return next_one


def test_a_restart_keeps_what_was_used_of_every_window() -> None:
    ledger = BudgetLedger()
    spend(ledger, "alice", 30)

    assert used(restarted(ledger), "alice", NOW + 1) == [30, 30, 0.03]


def test_a_request_that_was_running_at_a_crash_counts_by_its_estimate() -> None:
    ledger = BudgetLedger()
    ledger.of("alice").reserve(70, NOW, NOW)

    assert used(restarted(ledger), "alice")[:2] == [70, 70]


def test_a_minute_that_was_saved_by_a_clock_ahead_ends_a_minute_after_the_start() -> None:
    ledger = BudgetLedger()
    spend(ledger, "alice", 30, NOW + 3600)
    next_one = restarted(ledger)

    assert used(next_one, "alice", NOW)[0] == 30
    assert used(next_one, "alice", NOW + 60)[0] == 0


def test_two_gateways_with_one_file_see_what_each_other_has_used() -> None:
    first, second = BudgetLedger(), BudgetLedger()
    spend(first, "alice", 10)
    spend(second, "alice", 5)
    running = second.of("alice").reserve(40, NOW, NOW)
    changes = first.take_unsaved()
    saved = BudgetLedger.load(first.dump())
    assert changes is not None

    taken = second.take_unsaved()
    second.of("alice").settle(running, 0, 0, now=NOW, wall=NOW)  # not yet saved
    assert taken is not None
    saved.merge(taken, NOW)
    second.rebase(BudgetLedger.load(saved.dump()), NOW)

    assert used(saved, "alice")[:2] == [55, 55]
    assert used(second, "alice")[:2] == [15, 15]


def test_changes_that_could_not_be_saved_are_saved_with_the_next_ones() -> None:
    ledger = BudgetLedger()
    running = ledger.of("alice").reserve(40, NOW, NOW)
    unsaved = ledger.take_unsaved()
    ledger.of("alice").settle(running, 3, 0, now=NOW, wall=NOW)
    later = ledger.take_unsaved()
    assert unsaved is not None
    assert later is not None

    unsaved.merge(later, NOW)
    saved = BudgetLedger()
    saved.merge(unsaved, NOW)

    assert used(saved, "alice")[:2] == [3, 3]


def test_a_file_that_has_less_than_was_reserved_makes_no_count_negative() -> None:
    ledger, saved = BudgetLedger(), BudgetLedger()
    reserved = ledger.of("alice").reserve(40, NOW, NOW)
    ledger.take_unsaved()
    spend(saved, "alice", 5)
    ledger.rebase(BudgetLedger.load(saved.dump()), NOW)

    ledger.of("alice").settle(reserved, 0, 0, now=NOW, wall=NOW)

    assert used(restarted(ledger), "alice") == [0, 0, 0]


def test_what_was_taken_is_not_unsaved() -> None:
    ledger = BudgetLedger()
    spend(ledger, "alice", 1)
    assert ledger.has_changed

    assert ledger.take_unsaved() is not None

    assert not BudgetLedger().has_changed
    assert ledger.take_unsaved() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        BudgetLedger().dump().replace("1", "2"),
        BudgetLedger().dump().replace("{\n", '{\n"alice":{}'),
        BudgetLedger().dump().replace("{\n", '{\n"alice":[1]\n'),
    ],
)
def test_text_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it "):
        BudgetLedger.load(text)


def test_a_month_after_the_end_of_the_calendar_is_refused() -> None:
    ledger = BudgetLedger()
    spend(ledger, "alice", 1)
    month = str(next(iter(ledger.of("alice").counts[TOKENS_PER_MONTH])))

    with pytest.raises(ValueError, match="invalid line"):
        BudgetLedger.load(ledger.dump().replace(month, month + "0"))


def test_the_file_keeps_the_keys_that_were_used_last() -> None:
    ledger = BudgetLedger()
    spend(ledger, "old", 1, NOW - 40 * 86_400)
    for number in range(MAX_KEYS):
        spend(ledger, f"key-{number}", 1)

    loaded = BudgetLedger.load(ledger.dump())

    assert loaded.known("old") is None
    assert loaded.known("key-0") is not None


def test_a_long_file_is_read_with_pauses() -> None:
    ledger = BudgetLedger()
    for number in range(200):
        spend(ledger, f"key-{number}", 1)
    pauses: list[int] = []

    BudgetLedger.load(ledger.dump(), lambda: pauses.append(1))

    assert len(pauses) == 3


def test_the_text_of_changed_budgets_is_made_some_per_step() -> None:
    ledger = BudgetLedger()
    for number in range(3 * LINES_PER_PAUSE):
        spend(ledger, f"key-{number}", 5)

    assert len([*ledger.prepare()]) == 3
    assert not [*ledger.prepare()]
    assert restarted(ledger).key_ids() == ledger.key_ids()
