"""Budgets of keys, over histories of requests, restarts and clocks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_gguf.access.attributes import NO_ATTRIBUTES, Attributes
from llama_gguf.access.budget_ledger import BudgetLedger
from llama_gguf.access.token_budget import (
    FIRST_MILLISECONDS,
    HIDDEN_CHOICES,
    KEPT_PERIODS,
    MAX_CHOICES,
    MAX_SEARCHED_BYTES,
    NAMES,
    TokenBudget,
    choices_in,
    estimate,
)
from llama_gguf.http1.exchange_record import Reservation

DAY: Final = 86_400.0
MIDNIGHT: Final = datetime(2026, 11, 30, tzinfo=UTC).timestamp()  # the last day of its month
NOON: Final = MIDNIGHT + DAY / 2


def budget_of(ledger: BudgetLedger | None = None, /, **limits: int) -> TokenBudget:
    budget = (ledger or BudgetLedger()).of("alice")
    budget.limit(attributes(limits))
    return budget


def copy_of(budget: TokenBudget, /, **limits: int) -> TokenBudget:
    """For a look into the future; copy.deepcopy cannot copy an object of a compiled class."""
    copy = budget_of(**limits)
    copy.counts = [dict(by_period) for by_period in budget.counts]
    return copy


def attributes(limits: dict[str, int]) -> Attributes:
    return NO_ATTRIBUTES._replace(**limits)  # type: ignore[arg-type]  # all of these are int


def use(budget: TokenBudget, tokens: int, *, at: float, wall: float, milliseconds: int = 0) -> None:
    reserved = budget.reserve(tokens, at, wall)
    budget.settle(reserved, tokens, milliseconds, now=at, wall=wall)


def used(budget: TokenBudget, at: float, wall: float) -> dict[str, float]:
    return {state.name: state.used for state in budget.states(at, wall)}


def wait(budget: TokenBudget, at: float, wall: float) -> float:
    exceeded = budget.exceeded(at, wall)
    return 0.0 if exceeded is None else exceeded.wait


# The estimate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"", 1),
        (b"x" * 400, 100),
        (b'{"max_tokens":500}', 504),
        (b'{"max_completion_tokens" : 500}', 507),
        (b'{"max_output_tokens":\n500}', 506),
        (b'{"n_predict":500}', 504),
        (b'{"max_tokens":5,"n_predict":500}', 508),
        (b'{"n_predict":-1}', 4),
        (b'{"max_tokens":null}', 4),
        (rb'{"content":"\"max_tokens\":500"}', 8),  # text, in which quotes are escaped
    ],
)
def test_the_estimate_is_of_the_body_and_of_the_output_it_allows(body: bytes, tokens: int) -> None:
    assert estimate(body, None) == tokens


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        (b"{}", 1),
        (b'{"n":3}', 3),
        (b'{"n" : 0}', 1),
        (b'{"n_cmpl":3}', 3),
        (rb'{"content":"\"n\":3"}', 1),
        (b'{"prompt":["a","b"]}', 2),
        (b'{"prompt":[[1,2],[3]],"n":2}', 4),
        (b'{"prompt":[1,2,3]}', 1),
        (b'{"prompt":["a"', 1),
        (b'{"x":{"prompt":["a","b"]}}', 1),
        (b'[{"prompt":["a","b"]}]', 1),
        (b'{"n"' + b" " * 99 + b":" + b" " * 99 + b"3}", 3),
        (b'{"n":3e0}', 3),
        (b'{"n":0.3e1}', 3),
        (b'{"n":1-2}', 1),
        (b'{"n":1e999}', MAX_CHOICES),
        (rb'{"\u006e":3}', 3),
        (rb'{"n\u005Fcmpl":3}', 3),
        (rb'{"\u0070rompt":["a","b"]}', 2),
        (rb'{"\u006e":3', 1),
        (b'{"prompt"' + b" " * 99 + b':["a","b"]}', 2),
    ],
)
def test_the_outputs_that_a_request_wants_are_counted(body: bytes, choices: int) -> None:
    assert choices_in(body) == choices


@pytest.mark.parametrize(
    ("members", "choices"),
    [
        (b'"model":"m"', 1),
        (b'"n":3', 3),
        (b'"n" \t: 3e0', 3),
        (b'"n_cmpl":3', 3),
        (rb'"content":"\"n\":3"', 1),
        (b'"x":["n"],"n":3', 3),
        (b'"x":[' + b'"n",' * 99 + b'"n"],"n":3', HIDDEN_CHOICES),
        (rb'"\u006e":3', HIDDEN_CHOICES),
        (b'"prompt":["a","b"]', 2),
        (b'"prompt" : [ "a"\n,\t"b" , "c"],"n":2,"model":"m","stop":"x"', 6),
        (rb'"prompt":["a, [1], [2], {}, {}, \"x\", \"y\""],"model":"m","stop":"x"', 1),
        (b'"prompt":[[1,2],[3]]', 2),
        (b'"prompt":["a",[1,2],[3]]', 3),
        (b'"prompt":[1,2,3]', 1),
        (b'"prompt":[' + b'"a",' * 20_000 + b'"b"]', MAX_CHOICES),
        (b'"prompt":"a"', 1),
        (b'"prompt":["a","b"],"x":{"prompt":"a"}', 2),
    ],
)
def test_the_outputs_that_a_long_request_wants_are_counted(members: bytes, choices: int) -> None:
    body = b"{" + b" " * MAX_SEARCHED_BYTES + members + b"}"

    assert choices_in(body) == choices


def test_each_output_of_several_is_estimated() -> None:
    body = b'{"n":3,"max_tokens":500}'

    assert estimate(body, None, choices_in(body)) == 1506
    assert estimate(body, 100, choices_in(body)) == 300


def test_the_estimate_is_no_more_than_a_request_can_use() -> None:
    assert estimate(b'{"max_tokens":100000}', 4096) == 4096
    assert estimate(b"x" * (MAX_SEARCHED_BYTES + 1) + b'{"max_tokens":9}', None) == 65_540


# Each window --------------------------------------------------------------------------------------


amounts = st.integers(1, 60)
gaps = st.integers(0, 400).map(lambda quarters: quarters / 4)


@given(
    requests=st.lists(st.tuples(gaps, amounts), max_size=60),
    limit=st.integers(1, 100),
    begin=st.floats(0, 1),
)
def test_no_minute_admits_more_than_the_limit_and_one_request(
    requests: list[tuple[float, int]], limit: int, begin: float
) -> None:
    budget, now, admitted = budget_of(tokens_per_minute=limit), NOON + begin, []
    for gap, tokens in requests:
        now += gap
        if budget.exceeded(now, now) is None:
            budget.reserve(tokens, now, now)
            admitted.append((now, tokens))

    for start, _ in admitted:
        within = [tokens for at, tokens in admitted if int(start) <= at < int(start) + 60]
        assert sum(within[:-1]) < limit


@given(
    requests=st.lists(st.tuples(gaps, amounts), min_size=1, max_size=60), limit=st.integers(1, 100)
)
def test_the_wait_of_a_minute_is_true_and_not_too_long(
    requests: list[tuple[float, int]], limit: int
) -> None:
    budget, now, admitted = budget_of(tokens_per_minute=limit), NOON, []
    for gap, tokens in requests:
        now += gap
        seconds = wait(budget, now, now)
        if not seconds:
            budget.reserve(tokens, now, now)
            admitted.append((now, tokens))
        else:
            assert seconds <= 60  # OpenAI's clients wait no longer
            copy = copy_of(budget, tokens_per_minute=limit)
            assert wait(copy, now + seconds - 0.125, now)
            assert not wait(budget, now + seconds, now)
            return


@pytest.mark.parametrize(
    ("limits", "name", "end"),
    [
        ({"tokens_per_day": 100}, "tokens_per_day", MIDNIGHT + DAY),
        ({"tokens_per_month": 100}, "tokens_per_month", MIDNIGHT + DAY),
        ({"engine_seconds_per_day": 2}, "engine_seconds_per_day", MIDNIGHT + DAY),
    ],
)
def test_a_day_and_a_month_end_at_midnight_utc(
    limits: dict[str, int], name: str, end: float
) -> None:
    budget = budget_of(**limits)
    use(budget, 100, at=NOON, wall=NOON, milliseconds=2000)

    exceeded = budget.exceeded(NOON, NOON)

    assert exceeded is not None
    assert NAMES[exceeded.window] == name
    assert exceeded.limit == next(iter(limits.values()))
    assert exceeded.wait == end - NOON
    assert wait(budget, end - 1, end - 1) == 1.0
    assert wait(budget, end, end) == 0.0


def test_december_is_followed_by_january() -> None:
    budget = budget_of(tokens_per_month=1)
    december = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    use(budget, 1, at=december, wall=december)

    assert wait(budget, december, december) == 1.0
    assert wait(budget, december + 1, december + 1) == 0.0


def test_the_longest_wait_of_several_windows_is_the_one_that_is_stated() -> None:
    budget = budget_of(tokens_per_minute=1, tokens_per_day=5, tokens_per_month=1000)
    use(budget, 5, at=NOON, wall=NOON)

    assert wait(budget, NOON, NOON) == DAY / 2


# Reserve and settle -------------------------------------------------------------------------------


def test_exact_figures_replace_the_estimate() -> None:
    budget = budget_of(tokens_per_minute=1000, tokens_per_day=1000, engine_seconds_per_day=9)
    reserved = budget.reserve(400, NOON, NOON)
    assert used(budget, NOON, NOON) == {
        "tokens_per_minute": 400,
        "tokens_per_day": 400,
        "engine_seconds_per_day": FIRST_MILLISECONDS / 1000,
    }

    budget.settle(reserved, 30, 250, now=NOON + 1, wall=NOON + 1)

    assert used(budget, NOON + 1, NOON + 1) == {
        "tokens_per_minute": 30,
        "tokens_per_day": 30,
        "engine_seconds_per_day": 0.25,
    }


def test_what_exceeds_the_estimate_counts_where_the_request_ends() -> None:
    budget = budget_of(tokens_per_minute=1000, tokens_per_day=1000)
    evening = MIDNIGHT + DAY - 100
    reserved = budget.reserve(10, evening, evening)

    budget.settle(reserved, 50, 0, now=evening + 200, wall=evening + 200)

    assert used(budget, evening + 200, evening + 200) == {
        "tokens_per_minute": 40,
        "tokens_per_day": 40,
    }
    assert used(budget, evening + 200, evening)["tokens_per_day"] == 10


def test_what_is_given_back_after_midnight_leaves_the_new_day_alone() -> None:
    budget = budget_of(tokens_per_day=1000)
    evening, morning = MIDNIGHT + DAY - 1, MIDNIGHT + DAY + 1
    reserved = budget.reserve(400, evening, evening)
    use(budget, 7, at=morning, wall=morning)

    budget.settle(reserved, 0, 0, now=morning, wall=morning)

    assert used(budget, morning, morning)["tokens_per_day"] == 7
    assert used(budget, morning, evening)["tokens_per_day"] == 0


def test_the_engine_s_time_is_estimated_by_that_of_earlier_requests() -> None:
    budget = budget_of(engine_seconds_per_day=1000)
    for _ in range(60):
        use(budget, 1, at=NOON, wall=NOON, milliseconds=20_000)
    before = used(budget, NOON, NOON)["engine_seconds_per_day"]

    budget.reserve(1, NOON, NOON)

    assert used(budget, NOON, NOON)["engine_seconds_per_day"] - before == pytest.approx(20, 0.1)


# The clock ----------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back_reopens_no_window() -> None:
    budget = budget_of(tokens_per_minute=100, tokens_per_day=100, tokens_per_month=100)
    use(budget, 100, at=NOON, wall=NOON)

    for wall in (NOON - 1, NOON - DAY, NOON - 40 * DAY, 0.0):
        assert used(budget, NOON, wall) == dict.fromkeys(NAMES[:3], 100)
        assert wait(budget, NOON, wall) > 0


def test_a_clock_that_jumped_ahead_and_is_set_right_leaves_no_key_locked_out() -> None:
    budget = budget_of(tokens_per_day=100)
    use(budget, 60, at=NOON, wall=NOON)
    use(budget, 100, at=NOON, wall=NOON + 3650 * DAY)
    assert wait(budget, NOON, NOON + 3650 * DAY)

    assert used(budget, NOON, NOON) == {"tokens_per_day": 60}
    assert used(budget, NOON, NOON + DAY) == {"tokens_per_day": 0}


def test_the_wait_includes_days_that_were_used_while_the_clock_was_ahead() -> None:
    budget = budget_of(tokens_per_day=100)
    use(budget, 100, at=NOON, wall=NOON)
    use(budget, 100, at=NOON, wall=NOON + DAY)

    assert wait(budget, NOON, NOON) == 1.5 * DAY


@given(days=st.lists(st.integers(0, 12), max_size=40))
def test_a_day_admits_its_limit_once_however_the_clock_jumps(days: list[int]) -> None:
    budget, admitted = budget_of(tokens_per_day=3), 0
    for day in days:
        while budget.exceeded(NOON, NOON + day * DAY) is None:
            use(budget, 1, at=NOON, wall=NOON + day * DAY)
            admitted += 1

    assert admitted <= 3 * len(set(days))
    assert len(budget.counts[1]) <= KEPT_PERIODS


# Histories ----------------------------------------------------------------------------------------


@dataclass
class _Request:
    reserved: Reservation
    tokens: int
    milliseconds: int


@dataclass
class _Model:
    """What each window must hold: amounts by period, which nothing removes."""

    day: dict[int, int] = field(default_factory=dict)
    month: dict[int, int] = field(default_factory=dict)
    engine: dict[int, int] = field(default_factory=dict)

    def add(self, periods: tuple[int, int], tokens: int, milliseconds: int) -> None:
        day, month = periods
        self.day[day] = self.day.get(day, 0) + tokens
        self.month[month] = self.month.get(month, 0) + tokens
        self.engine[day] = self.engine.get(day, 0) + milliseconds


def periods_at(wall: float) -> tuple[int, int]:
    date = datetime.fromtimestamp(wall, UTC)
    return int(wall // DAY), date.year * 12 + date.month - 1


class Histories(RuleBasedStateMachine):
    """Requests that begin, end, fail and are cancelled; reloads, restarts and moving clocks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.wall = MIDNIGHT + DAY - 90
        self.model = _Model()
        self.running: list[_Request] = []
        self.admitted: list[tuple[float, int]] = []
        self.limits = {
            "tokens_per_minute": 200,
            "tokens_per_day": 500,
            "tokens_per_month": 900,
            "engine_seconds_per_day": 60,
        }
        self.start(BudgetLedger())

    def start(self, ledger: BudgetLedger) -> None:
        self.ledger = BudgetLedger()
        self.ledger.rebase(ledger, self.wall)
        self.budget = budget_of(self.ledger, **self.limits)

    @rule(tokens=st.integers(1, 150), actual=st.integers(0, 400), engine=st.integers(0, 9000))
    def begin(self, tokens: int, actual: int, engine: int) -> None:
        before = used(self.budget, self.now, self.wall)
        is_full = any(before[name] >= limit for name, limit in self.limits.items())

        assert (self.budget.exceeded(self.now, self.wall) is not None) == is_full
        if is_full:
            return
        reserved = self.budget.reserve(tokens, self.now, self.wall)
        self.model.add(periods_at(self.wall), tokens, reserved.milliseconds)
        self.running.append(_Request(reserved, actual, engine))
        for name, amount in used(self.budget, self.now, self.wall).items():
            more = reserved.milliseconds / 1000 if name.startswith("engine") else tokens
            assert amount == pytest.approx(before[name] + more)
            assert amount < self.limits[name] + more

    def end(self, request: _Request, tokens: int, milliseconds: int) -> None:
        reserved = request.reserved
        self.budget.settle(reserved, tokens, milliseconds, now=self.now, wall=self.wall)
        start, present = (reserved.periods[1], reserved.periods[2]), periods_at(self.wall)
        more, longer = tokens - reserved.tokens, milliseconds - reserved.milliseconds
        self.model.add(start, min(more, 0), min(longer, 0))
        self.model.add(present, max(more, 0), max(longer, 0))

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 99))
    def finish(self, place: int) -> None:
        request = self.running.pop(place % len(self.running))
        self.end(request, request.tokens, request.milliseconds)

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 99))
    def fail(self, place: int) -> None:
        self.end(self.running.pop(place % len(self.running)), 0, 0)

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 99))
    def leave_without_usage(self, place: int) -> None:
        request = self.running.pop(place % len(self.running))
        self.end(request, request.reserved.tokens, request.milliseconds)

    @rule(seconds=st.integers(0, 200))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds / 4
        self.wall += seconds / 4

    @rule(days=st.integers(1, 3))
    def sleep(self, days: int) -> None:
        self.now += days * DAY
        self.wall += days * DAY

    @rule(seconds=st.integers(-3600, 3600))
    def set_clock(self, seconds: int) -> None:
        """Within the periods that are known, or ahead of them: other tests have the rest."""
        earliest = min(itertools.chain(self.model.day, [periods_at(self.wall)[0]]))
        if int((self.wall + seconds) // DAY) >= earliest:
            self.wall += seconds

    @rule(minute=st.integers(50, 400), day=st.integers(100, 900))
    def reload(self, minute: int, day: int) -> None:
        self.limits |= {"tokens_per_minute": minute, "tokens_per_day": day}
        self.budget.limit(attributes(self.limits))

    @rule()
    def save(self) -> None:
        text = self.ledger.dump()
        self.ledger.take_unsaved()
        assert BudgetLedger.load(text).dump() == text

    @rule()
    def restart(self) -> None:
        """All requests are cut; what was reserved for them at a crash counts as used."""
        text = self.ledger.dump()
        self.running.clear()
        self.start(BudgetLedger.load(text))

    @rule(tokens=st.integers(1, 50))
    def count_elsewhere(self, tokens: int) -> None:
        """Another gateway has added to the same file."""
        ours = self.ledger.take_unsaved()
        saved = BudgetLedger.load(self.ledger.dump())
        other = BudgetLedger()
        other.rebase(BudgetLedger.load(saved.dump()), self.wall)
        reserved = other.of("alice").reserve(tokens, self.now, self.wall)
        other.of("alice").settle(reserved, tokens, 100, now=self.now, wall=self.wall)
        self.model.add(periods_at(self.wall), tokens, 100)
        changes = other.take_unsaved()
        assert changes is not None
        saved.merge(changes, self.wall)
        self.ledger.rebase(saved, self.wall)
        del ours

    @invariant()
    def counts_are_those_of_the_requests(self) -> None:
        counts = self.budget.counts
        for kept, all_of_them in zip(
            counts[1:], (self.model.day, self.model.month, self.model.engine), strict=True
        ):
            assert len(kept) <= KEPT_PERIODS
            for period, amount in kept.items():
                assert amount == all_of_them[period]
                assert amount >= 0

    @invariant()
    def a_remaining_window_opens_when_it_says(self) -> None:
        exceeded = self.budget.exceeded(self.now, self.wall)
        if exceeded is None:
            return
        assert exceeded.wait > 0
        later = copy_of(self.budget, **self.limits).exceeded(
            self.now + exceeded.wait, self.wall + exceeded.wait
        )
        assert later is None or later.window != exceeded.window


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=100, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)


@given(
    requests=st.lists(
        st.tuples(st.integers(1, 99), st.integers(0, 200), st.booleans()), max_size=30
    )
)
def test_nothing_reserved_is_left_behind(requests: list[tuple[int, int, bool]]) -> None:
    budget = budget_of(tokens_per_minute=1, tokens_per_day=1, engine_seconds_per_day=1)
    running = [
        (budget.reserve(tokens, NOON, NOON), actual, failed) for tokens, actual, failed in requests
    ]

    for reserved, actual, failed in reversed(running):
        tokens = 0 if failed else actual
        budget.settle(reserved, tokens, 3 * tokens, now=NOON + 1, wall=NOON + 1)

    total = sum(actual for _, actual, failed in running if not failed)
    assert used(budget, NOON + 2, NOON + 2) == {
        "tokens_per_minute": total,
        "tokens_per_day": total,
        "engine_seconds_per_day": 3 * total / 1000,
    }
