from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.request import Request
from llama_gguf.http1.routes import Kind, Route
from llama_gguf.telemetry import usage_totals as ledger_module
from llama_gguf.telemetry.token_usage import Usage
from llama_gguf.telemetry.usage_totals import COUNTS, WINDOWS, Ledger, counts_of
from tests.support.exchanges import finished_exchange, request_for

NOW = 1_800_000_000.0
ONE = (1, 0, 10, 20, 5, 0)


def numbers(ledger: Ledger, key_id: str, window: str, now: float = NOW) -> list[int]:
    view: Any = ledger.view(key_id, now)
    return [view[window][name] for name in COUNTS]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(since=NOW)


# Counting -----------------------------------------------------------------------------------------


def test_usage_of_a_key_is_in_its_total_and_in_every_window(ledger: Ledger) -> None:
    ledger.add("alice", ONE, NOW)
    ledger.add("alice", (0, 1, 0, 0, 0, 2), NOW)

    for window in ("total", *WINDOWS):
        assert numbers(ledger, "alice", window) == [1, 1, 10, 20, 5, 2]


def test_keys_are_counted_separately(ledger: Ledger) -> None:
    ledger.add("alice", ONE, NOW)
    ledger.add("bob", (2, 0, 0, 0, 0, 0), NOW)

    assert numbers(ledger, "alice", "total") == list(ONE)
    assert numbers(ledger, "bob", "total") == [2, 0, 0, 0, 0, 0]
    assert [view["key_id"] for view in ledger.views(NOW)] == ["alice", "bob"]


def test_a_key_that_has_used_nothing_has_numbers_too(ledger: Ledger) -> None:
    assert numbers(ledger, "carol", "last_day") == [0] * len(COUNTS)
    assert ledger.views(NOW) == []


@pytest.mark.parametrize(("window", "seconds"), [(n, s * k) for n, (s, k) in WINDOWS.items()])
def test_a_window_forgets_and_the_total_does_not(
    window: str, seconds: float, ledger: Ledger
) -> None:
    span = WINDOWS[window][0]
    ledger.add("alice", ONE, NOW)

    assert numbers(ledger, "alice", window, NOW + seconds - span) == list(ONE)
    assert numbers(ledger, "alice", window, NOW + seconds) == [0] * len(COUNTS)
    assert numbers(ledger, "alice", "total", NOW + seconds) == list(ONE)


@given(
    gaps=st.lists(st.integers(0, 4000), min_size=1, max_size=60),
    window=st.sampled_from(sorted(WINDOWS)),
)
def test_a_window_is_exact_to_within_a_span_and_bounded(gaps: list[int], window: str) -> None:
    ledger, now, moments = Ledger(NOW), NOW, []
    seconds, length = WINDOWS[window]
    for gap in gaps:
        now += gap
        moments.append(now)
        ledger.add("alice", ONE, now)
    found = numbers(ledger, "alice", window, now)[0]

    whole = seconds * length
    assert found <= sum(now - m < whole for m in moments)
    assert found >= sum(now - m < whole - seconds for m in moments)
    assert len(json.loads(ledger.dump())["keys"]["alice"][window]) <= length + 1


def test_a_clock_that_is_set_back_loses_nothing_but_windows(ledger: Ledger) -> None:
    ledger.add("alice", ONE, NOW + 1e6)
    ledger.add("alice", ONE, NOW)

    assert numbers(ledger, "alice", "last_minute", NOW)[0] == 1
    assert numbers(ledger, "alice", "total", NOW)[0] == 2


def test_the_least_recently_used_key_is_removed_first() -> None:
    ledger = Ledger(NOW, max_keys=2)
    for key_id in ("alice", "bob", "alice", "carol"):
        ledger.add(key_id, ONE, NOW)

    assert [view["key_id"] for view in ledger.views(NOW)] == ["alice", "carol"]


# Exchanges ----------------------------------------------------------------------------------------


def test_exchanges_add_up_by_key() -> None:
    usage = Usage(prompt=10, completion=20, cached=5)
    refused = finished_exchange(status=429, first_byte=None)
    counts = counts_of(
        [
            finished_exchange(usage=usage),
            refused,
            finished_exchange(),
            finished_exchange(key_id="bob", usage=usage),
            finished_exchange(usage=usage),
        ]
    )

    assert counts == {"alice": [4, 1, 20, 40, 10, 1], "bob": [1, 0, 10, 20, 5, 0]}


def test_incomplete_usage_counts_as_far_as_it_is_known() -> None:
    half = Usage(None, 20, None, is_whole=False)

    assert counts_of([finished_exchange(usage=half)]) == {"alice": [1, 0, 0, 20, 0, 1]}


def test_a_route_without_tokens_has_no_unknown_usage() -> None:
    models = finished_exchange(request_for("GET", "/v1/models", label="/v1/models"))

    assert counts_of([models]) == {"alice": [1, 0, 0, 0, 0, 0]}


def test_without_a_key_id_only_responses_of_the_engine_count() -> None:
    refused = finished_exchange(key_id="-", status=401, first_byte=None)
    ui = finished_exchange(web_ui(), key_id="-")

    assert counts_of([refused, ui]) == {}
    assert counts_of([finished_exchange(key_id="-")]) == {"-": [1, 0, 0, 0, 0, 1]}


def test_local_responses_are_not_counted() -> None:
    ours = request_for("GET", "/usage", label="/usage")
    ours.route = Route(Kind.USAGE, "/usage")

    assert counts_of([finished_exchange(ours)]) == {}


def web_ui() -> Request:
    request = request_for("GET", "/", label="web_ui")
    request.route = Route(Kind.PROXIED, "web_ui", needs_no_key=True)
    return request


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
    ledger = Ledger(NOW)
    for key_id, counts, later in uses:
        ledger.add(key_id, counts, NOW + later)
        ledger.dump()  # in between, so that stored dumps are covered, too
    again = Ledger.load(ledger.dump())

    assert again.since == NOW
    for now in (NOW, NOW + 100, NOW + 200_000):
        assert again.views(now) == ledger.views(now)
    assert again.dump() == ledger.dump()


def test_a_ledger_has_changed_until_the_unsaved_usage_is_taken(ledger: Ledger) -> None:
    has_changed = [ledger.has_changed]
    ledger.add("alice", ONE, NOW)
    has_changed.append(ledger.has_changed)
    ledger.take_unsaved()

    assert [*has_changed, ledger.has_changed] == [False, True, False]
    assert ledger.take_unsaved() is None
    assert not Ledger.load(ledger.dump()).has_changed


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_a_dump_is_read_in_any_layout(indent: int | None, ledger: Ledger) -> None:
    ledger.add("alice", ONE, NOW)
    ledger.add("bob", ONE, NOW)
    for separators in ((",", ":"), (", ", ": ")):
        text = json.dumps(json.loads(ledger.dump()), indent=indent, separators=separators)

        assert Ledger.load(text).views(NOW) == ledger.views(NOW)


def test_a_large_dump_is_loaded_with_a_pause_every_few_lines(ledger: Ledger) -> None:
    for n in range(3 * ledger_module.LINES_PER_PAUSE):
        ledger.add(f"key-{n}", ONE, NOW)
    pauses: list[None] = []
    Ledger.load(ledger.dump(), lambda: pauses.append(None))

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
def test_ledgers_that_are_merged_again_and_again_add_up_to_one(
    uses: list[tuple[int, str, int, str]], additions: int
) -> None:
    both, now = Ledger(NOW), NOW
    text = Ledger(NOW).dump()
    ledgers = [Ledger(NOW), Ledger(NOW)]
    failed = [Ledger(NOW), Ledger(NOW)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "MAX_ADDITIONS", additions)
        for which, key_id, later, then in [*uses, (0, "a", 0, "save"), (1, "b", 0, "save")]:
            now += later
            both.add(key_id, ONE, now)
            ledgers[which].add(key_id, ONE, now)
            unsaved = ledgers[which].take_unsaved() if then else None
            if unsaved is not None:
                failed[which].merge(unsaved, now)
            if then == "save":
                saved = Ledger.load(text)
                saved.merge(failed[which], now)
                failed[which] = Ledger(NOW)
                text = saved.dump()
                ledgers[which].rebase(saved, now)

    assert Ledger.load(text).views(now) == both.views(now)
    assert ledgers[1].views(now) == both.views(now)


def test_a_rebased_ledger_has_what_was_added_meanwhile(ledger: Ledger) -> None:
    ledger.add("alice", ONE, NOW)
    saved = Ledger(NOW - 5)
    taken = ledger.take_unsaved()
    assert taken is not None
    saved.merge(taken, NOW)
    saved.add("bob", ONE, NOW)
    ledger.add("alice", ONE, NOW)
    ledger.rebase(saved, NOW)

    assert numbers(ledger, "alice", "total")[0] == 2
    assert numbers(ledger, "bob", "last_minute")[0] == 1
    assert ledger.since == NOW - 5
    assert ledger.has_changed


def test_a_sum_keeps_no_more_keys_and_spans_than_a_ledger() -> None:
    saved, later = Ledger(NOW, max_keys=2), NOW
    for n in range(100):
        later = NOW + 5 * n
        added = Ledger(NOW)
        added.add(f"key-{n % 3}", ONE, later)
        saved.merge(added, later)

    assert [view["key_id"] for view in saved.views(later)] == ["key-0", "key-2"]
    newest = json.loads(saved.dump())["keys"]["key-0"]
    assert len(newest["last_minute"]) <= WINDOWS["last_minute"][1]


WHOLE = json.loads(Ledger(NOW).dump()) | {
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
    Ledger.load(json.dumps(WHOLE))

    with pytest.raises(ValueError, match=r"."):
        Ledger.load(json.dumps(WHOLE | change))


@given(text=st.one_of(st.text(max_size=50), st.just("[" * 100_000)))
def test_any_text_is_a_ledger_or_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Ledger.load(text)


@given(at=st.integers(0, 400), put=st.text(max_size=2))
def test_a_mutated_dump_is_a_ledger_or_refused(at: int, put: str) -> None:
    ledger = Ledger(NOW)
    ledger.add("alice", ONE, NOW)
    text = ledger.dump()
    try:
        found = Ledger.load(text[:at] + put + text[at + 1 :])
    except ValueError:
        return
    found.views(NOW)
    found.dump()
