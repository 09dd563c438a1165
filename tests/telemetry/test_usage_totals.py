from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.exchange_record import Usage
from llama_gguf.telemetry import usage_totals
from llama_gguf.telemetry.batch import COUNTS, Batch
from llama_gguf.telemetry.usage_totals import LINES_PER_PAUSE, WINDOWS, UsageTotals
from tests.support.exchanges import finished_exchange

NOW = 1_800_000_000.0
ONE = (1, 0, 10, 20, 5, 0)


def numbers(totals: UsageTotals, key_id: str, window: str, now: float = NOW) -> list[int]:
    view: Any = totals.view(key_id, now)
    return [view[window][name] for name in COUNTS]


@pytest.fixture
def totals() -> UsageTotals:
    return UsageTotals(since=NOW)


# Counting -----------------------------------------------------------------------------------------


def test_usage_of_a_key_is_in_its_total_and_in_every_window(totals: UsageTotals) -> None:
    totals.add("alice", ONE, NOW)
    totals.add("alice", (0, 1, 0, 0, 0, 2), NOW)

    for window in ("total", *WINDOWS):
        assert numbers(totals, "alice", window) == [1, 1, 10, 20, 5, 2]


def test_keys_are_counted_separately(totals: UsageTotals) -> None:
    totals.add("alice", ONE, NOW)
    totals.add("bob", (2, 0, 0, 0, 0, 0), NOW)

    assert numbers(totals, "alice", "total") == list(ONE)
    assert numbers(totals, "bob", "total") == [2, 0, 0, 0, 0, 0]
    assert [view["key_id"] for view in totals.views(NOW)] == ["alice", "bob"]


def test_the_usage_of_a_batch_is_added_at_its_time(totals: UsageTotals) -> None:
    totals.take(
        Batch(
            [finished_exchange(usage=Usage(10, 20, 5)), finished_exchange(key_id="bob")], NOW - 100
        )
    )

    assert numbers(totals, "alice", "last_hour") == [1, 0, 10, 20, 5, 0]
    assert numbers(totals, "alice", "last_minute") == [0] * len(COUNTS)
    assert numbers(totals, "bob", "total") == [1, 0, 0, 0, 0, 1]


def test_a_key_without_usage_has_zeros(totals: UsageTotals) -> None:
    assert numbers(totals, "carol", "last_day") == [0] * len(COUNTS)
    assert totals.views(NOW) == []


@pytest.mark.parametrize(("window", "seconds"), [(n, s * k) for n, (s, k) in WINDOWS.items()])
def test_a_window_forgets_and_the_total_does_not(
    window: str, seconds: float, totals: UsageTotals
) -> None:
    span = WINDOWS[window][0]
    totals.add("alice", ONE, NOW)

    assert numbers(totals, "alice", window, NOW + seconds - span) == list(ONE)
    assert numbers(totals, "alice", window, NOW + seconds) == [0] * len(COUNTS)
    assert numbers(totals, "alice", "total", NOW + seconds) == list(ONE)


@given(
    gaps=st.lists(st.integers(0, 4000), min_size=1, max_size=60),
    window=st.sampled_from(sorted(WINDOWS)),
)
def test_a_window_is_exact_to_within_a_span_and_bounded(gaps: list[int], window: str) -> None:
    totals, now, moments = UsageTotals(NOW), NOW, []
    seconds, length = WINDOWS[window]
    for gap in gaps:
        now += gap
        moments.append(now)
        totals.add("alice", ONE, now)
    found = numbers(totals, "alice", window, now)[0]

    whole = seconds * length
    assert found <= sum(now - m < whole for m in moments)
    assert found >= sum(now - m < whole - seconds for m in moments)
    assert len(json.loads(totals.dump())["keys"]["alice"][window]) <= length + 1


def test_a_clock_that_is_set_back_loses_nothing_but_windows(totals: UsageTotals) -> None:
    totals.add("alice", ONE, NOW + 1e6)
    totals.add("alice", ONE, NOW)

    assert numbers(totals, "alice", "last_minute", NOW)[0] == 1
    assert numbers(totals, "alice", "total", NOW)[0] == 2


def test_the_least_recently_used_key_is_removed_first() -> None:
    totals = UsageTotals(NOW, max_keys=2)
    for key_id in ("alice", "bob", "alice", "carol"):
        totals.add(key_id, ONE, NOW)

    assert [view["key_id"] for view in totals.views(NOW)] == ["alice", "carol"]


# Across restarts ----------------------------------------------------------------------------------


@given(
    uses=st.lists(
        st.tuples(
            st.sampled_from(["alice", "bob", "-", "x_Y-9"]),
            st.lists(st.integers(0, 10**12), min_size=len(COUNTS), max_size=len(COUNTS)),
            st.integers(0, 200_000),
        ),
        max_size=30,
    )
)
def test_a_dump_can_be_loaded(uses: list[tuple[str, list[int], int]]) -> None:
    totals = UsageTotals(NOW)
    for key_id, counts, later in uses:
        totals.add(key_id, counts, NOW + later)
        totals.dump()  # in between, so that stored dumps are covered, too
    again = UsageTotals.load(totals.dump())

    assert again.since == NOW
    for now in (NOW, NOW + 100, NOW + 200_000):
        assert again.views(now) == totals.views(now)
    assert again.dump() == totals.dump()


def test_totals_have_changed_until_the_unsaved_usage_is_taken(totals: UsageTotals) -> None:
    has_changed = [totals.has_changed]
    totals.add("alice", ONE, NOW)
    has_changed.append(totals.has_changed)
    totals.take_unsaved()

    assert [*has_changed, totals.has_changed] == [False, True, False]
    assert totals.take_unsaved() is None
    assert not UsageTotals.load(totals.dump()).has_changed


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_a_dump_is_read_in_any_layout(indent: int | None, totals: UsageTotals) -> None:
    totals.add("alice", ONE, NOW)
    totals.add("bob", ONE, NOW)
    for separators in ((",", ":"), (", ", ": ")):
        text = json.dumps(json.loads(totals.dump()), indent=indent, separators=separators)

        assert UsageTotals.load(text).views(NOW) == totals.views(NOW)


def test_a_large_dump_is_loaded_with_a_pause_every_few_lines(totals: UsageTotals) -> None:
    for n in range(3 * usage_totals.LINES_PER_PAUSE):
        totals.add(f"key-{n}", ONE, NOW)
    pauses: list[None] = []
    UsageTotals.load(totals.dump(), lambda: pauses.append(None))

    assert len(pauses) == 3


# Among several ------------------------------------------------------------------------------------


@given(
    uses=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(["alice", "bob"]),
            st.integers(0, 4000),
            st.sampled_from(["", "save", "fail"]),
        ),
        max_size=40,
    ),
    additions=st.integers(1, 3),
)
def test_totals_that_are_merged_repeatedly_add_up(
    uses: list[tuple[int, str, int, str]], additions: int
) -> None:
    both, now = UsageTotals(NOW), NOW
    text = UsageTotals(NOW).dump()
    several = [UsageTotals(NOW), UsageTotals(NOW)]
    failed = [UsageTotals(NOW), UsageTotals(NOW)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_totals, "MAX_ADDITIONS", additions)
        for which, key_id, later, then in [*uses, (0, "a", 0, "save"), (1, "b", 0, "save")]:
            now += later
            both.add(key_id, ONE, now)
            several[which].add(key_id, ONE, now)
            unsaved = several[which].take_unsaved() if then else None
            if unsaved is not None:
                failed[which].merge(unsaved, now)
            if then == "save":
                saved = UsageTotals.load(text)
                saved.merge(failed[which], now)
                failed[which] = UsageTotals(NOW)
                text = saved.dump()
                several[which].rebase(saved, now)

    assert UsageTotals.load(text).views(now) == both.views(now)
    assert several[1].views(now) == both.views(now)


def test_rebased_totals_have_what_was_added_meanwhile(totals: UsageTotals) -> None:
    totals.add("alice", ONE, NOW)
    saved = UsageTotals(NOW - 5)
    taken = totals.take_unsaved()
    assert taken is not None
    saved.merge(taken, NOW)
    saved.add("bob", ONE, NOW)
    totals.add("alice", ONE, NOW)
    totals.rebase(saved, NOW)

    assert numbers(totals, "alice", "total")[0] == 2
    assert numbers(totals, "bob", "last_minute")[0] == 1
    assert totals.since == NOW - 5
    assert totals.has_changed


def test_a_sum_keeps_no_more_keys_and_spans_than_its_parts() -> None:
    saved, later = UsageTotals(NOW, max_keys=2), NOW
    for n in range(100):
        later = NOW + 5 * n
        added = UsageTotals(NOW)
        added.add(f"key-{n % 3}", ONE, later)
        saved.merge(added, later)

    assert [view["key_id"] for view in saved.views(later)] == ["key-0", "key-2"]
    newest = json.loads(saved.dump())["keys"]["key-0"]
    assert len(newest["last_minute"]) <= WINDOWS["last_minute"][1]


WHOLE = json.loads(UsageTotals(NOW).dump()) | {
    "keys": {"alice": {"total": [0] * 6, "last_minute": {}, "last_hour": {}, "last_day": {}}}
}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"since": "now"},
        {"since": float("nan")},
        {"since": -1},
        {"since": 10**400},
        {"since": None},
        {"keys": []},
        {"keys": {"alice": 5}},
        {"keys": {"alice": {}}},
        {"keys": {"alice": WHOLE["keys"]["alice"] | {"total": [1, 2]}}},
        {"keys": {"alice": WHOLE["keys"]["alice"] | {"total": [0, 0, 0, 0, 0, "5"]}}},
        {"keys": {"alice": WHOLE["keys"]["alice"] | {"total": [0, 0, 0, 0, 0, -5]}}},
        {"keys": {"alice": WHOLE["keys"]["alice"] | {"last_day": {"x": [0] * 6}}}},
        {"keys": {"alice": WHOLE["keys"]["alice"] | {"last_day": [1]}}},
    ],
)
def test_text_that_no_dump_contains_is_rejected(change: dict[str, Any]) -> None:
    UsageTotals.load(json.dumps(WHOLE))

    with pytest.raises(ValueError, match=r"."):
        UsageTotals.load(json.dumps(WHOLE | change))


@given(text=st.one_of(st.text(max_size=50), st.just("[" * 100_000)))
def test_any_text_is_loaded_or_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        UsageTotals.load(text)


@given(at=st.integers(0, 400), put=st.text(max_size=2))
def test_a_mutated_dump_is_loaded_or_rejected(at: int, put: str) -> None:
    totals = UsageTotals(NOW)
    totals.add("alice", ONE, NOW)
    text = totals.dump()
    try:
        found = UsageTotals.load(text[:at] + put + text[at + 1 :])
    except ValueError:
        return
    found.views(NOW)
    found.dump()


def test_the_text_of_changed_keys_is_made_some_keys_per_step() -> None:
    totals = UsageTotals(NOW)
    for number in range(3 * LINES_PER_PAUSE):
        totals.add(f"key-{number}", [1] * len(COUNTS), NOW)

    steps = totals.prepare()
    next(steps)

    assert sum(1 for usage in totals._by_key.values() if usage.text) == LINES_PER_PAUSE
    assert len([*steps]) == 2
