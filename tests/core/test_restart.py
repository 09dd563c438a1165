from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from llama_gguf.core.engine import EngineState as S
from llama_gguf.core.restart import Event as E
from llama_gguf.core.restart import (
    GiveUp,
    IllegalTransition,
    Progress,
    RestartPolicy,
    SpawnAt,
    StallWatch,
)


class Died:
    """One death in a history: when, with what, and what has to follow."""

    def __init__(self, now: float, then: SpawnAt | GiveUp, *, status: int = 1) -> None:
        self.now = now
        self.then = then
        self.status = status


UP = (E.SPAWNED, E.SERVES)
HISTORIES: dict[str, tuple[Callable[[], RestartPolicy], list[E | Died], S]] = {
    "it serves and goes on serving": (RestartPolicy, [*UP], S.READY),
    "it dies once and comes back": (
        RestartPolicy,
        [*UP, Died(100.0, SpawnAt(101.0)), *UP],
        S.READY,
    ),
    "the delay doubles": (
        partial(RestartPolicy, max_deaths=4),
        [
            *(*UP, Died(10.0, SpawnAt(11.0))),
            *(E.SPAWNED, Died(12.0, SpawnAt(14.0))),
            *(E.SPAWNED, Died(15.0, SpawnAt(19.0))),
            *(E.SPAWNED, Died(20.0, SpawnAt(28.0))),
        ],
        S.BACKOFF,
    ),
    "no delay exceeds the longest": (
        partial(RestartPolicy, first_delay=4.0, max_delay=10.0),
        [
            *(E.SPAWNED, Died(0.0, SpawnAt(4.0))),
            *(E.SPAWNED, Died(10.0, SpawnAt(18.0))),
            *(E.SPAWNED, Died(20.0, SpawnAt(30.0))),
            *(E.SPAWNED, Died(40.0, SpawnAt(50.0))),
        ],
        S.BACKOFF,
    ),
    "serving forgives earlier deaths": (
        partial(RestartPolicy, max_deaths=2),
        [
            *(*UP, Died(0.0, SpawnAt(1.0))),
            *(E.SPAWNED, Died(2.0, SpawnAt(4.0))),
            *(*UP, Died(50.0, SpawnAt(51.0))),
            *(E.SPAWNED, Died(52.0, SpawnAt(54.0))),
        ],
        S.BACKOFF,
    ),
    "a crash loop is given up with the status of the last death": (
        partial(RestartPolicy, max_deaths=2),
        [
            *(*UP, Died(0.0, SpawnAt(1.0), status=139)),
            *(E.SPAWNED, Died(2.0, SpawnAt(4.0), status=139)),
            *(E.SPAWNED, Died(5.0, GiveUp(3), status=3)),
        ],
        S.FAILED,
    ),
    "no death is borne where none may be": (
        partial(RestartPolicy, max_deaths=0),
        [*UP, Died(0.0, GiveUp(1))],
        S.FAILED,
    ),
    "what never served is given up at once": (
        partial(RestartPolicy, max_deaths=5, max_first_deaths=0),
        [E.SPAWNED, Died(7.0, GiveUp(1))],
        S.FAILED,
    ),
    "what has served gets its chances, also while it comes back": (
        partial(RestartPolicy, max_deaths=2, max_first_deaths=0),
        [*UP, Died(0.0, SpawnAt(1.0)), E.SPAWNED, Died(2.0, SpawnAt(4.0))],
        S.BACKOFF,
    ),
    "what cannot even be spawned has died": (
        RestartPolicy,
        [Died(0.0, SpawnAt(1.0)), E.SPAWNED],
        S.LOADING,
    ),
    "asked to stop while it serves": (RestartPolicy, [*UP, E.STOP, E.GONE], S.STOPPED),
    "asked to stop while it loads": (RestartPolicy, [E.SPAWNED, E.STOP, E.GONE], S.STOPPED),
    "asked to stop while nothing runs": (RestartPolicy, [E.STOP], S.STOPPED),
    "asked to stop between two tries": (
        RestartPolicy,
        [*UP, Died(0.0, SpawnAt(1.0)), E.STOP],
        S.STOPPED,
    ),
}


@pytest.mark.parametrize(("make", "history", "end"), HISTORIES.values(), ids=HISTORIES.keys())
def test_a_history(make: Callable[[], RestartPolicy], history: list[E | Died], end: S) -> None:
    policy = make()
    for happened in history:
        if isinstance(happened, Died):
            assert policy.died(happened.status, happened.now) == happened.then
        else:
            policy.on(happened)

    assert policy.state is end


def test_restarts_are_counted_and_giving_up_is_none() -> None:
    policy = RestartPolicy(max_deaths=1)
    policy.on(E.SPAWNED)
    policy.died(1, 0.0)
    policy.on(E.SPAWNED)
    policy.died(1, 0.0)

    assert (policy.restarts, policy.state) == (1, S.FAILED)


def test_the_longest_crash_loop_that_a_setting_allows_keeps_its_delay() -> None:
    policy = RestartPolicy(max_delay=60.0, max_deaths=1000)
    for _ in range(1000):
        policy.on(E.SPAWNED)
        decision = policy.died(1, 5.0)

    assert decision == SpawnAt(65.0)


@pytest.mark.parametrize(
    ("history", "then"),
    [
        ([], E.SERVES),
        ([], E.GONE),
        ([E.SPAWNED], E.SPAWNED),
        ([E.SPAWNED], E.GIVEN_UP),
        ([*UP], E.SERVES),
        ([*UP], E.SPAWNED),
        ([*UP], E.GONE),
        ([*UP, E.STOP], E.SERVES),
        ([*UP, E.STOP], E.SPAWNED),
        ([*UP, E.STOP], E.STOP),
        ([*UP, E.STOP, E.GONE], E.SPAWNED),
        ([E.STOP], E.SPAWNED),
        ([E.SPAWNED, E.DIED], E.SERVES),
        ([E.SPAWNED, E.DIED], E.DIED),
        ([E.SPAWNED, E.DIED, E.GIVEN_UP], E.SPAWNED),
    ],
    ids=lambda value: " ".join(e.name for e in value) if isinstance(value, list) else value.name,
)
def test_what_cannot_happen_raises_and_changes_nothing(history: list[E], then: E) -> None:
    policy = RestartPolicy()
    for event in history:
        policy.on(event)
    before = policy.state

    with pytest.raises(IllegalTransition, match=f"{then.name} while {before.name}"):
        policy.on(then)

    assert policy.state is before


def test_a_death_that_was_asked_for_is_no_crash() -> None:
    policy = RestartPolicy()
    for event in (*UP, E.STOP):
        policy.on(event)

    with pytest.raises(IllegalTransition):
        policy.died(0, 1.0)

    assert policy.restarts == 0


# Whether a load still moves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "moved",
    [
        Progress(31.0, (5,), 1 << 30),  # a tenth of a core and more
        Progress(1.0, (6,), 1 << 30),  # a line, or a fault
        Progress(1.0, (5,), 2 << 30),  # memory
    ],
    ids=["cpu", "work", "memory"],
)
def test_a_load_that_moves_is_not_stalled_however_long_it_takes(moved: Progress) -> None:
    watch = StallWatch(300.0)
    assert not watch.is_stalled(Progress(1.0, (5,), 1 << 30), 0.0)

    assert not watch.is_stalled(moved, 299.0)
    assert not watch.is_stalled(moved, 598.0)
    assert watch.is_stalled(moved, 600.0)


def test_what_answering_probes_costs_is_no_sign_of_life() -> None:
    watch = StallWatch(300.0)
    watch.is_stalled(Progress(1.0, (5,), 1 << 30), 0.0)

    for second in range(300):
        spent = Progress(1.0 + second * 0.01, (5,), (1 << 30) + second * 4096)
        assert not watch.is_stalled(spent, float(second))
    assert watch.is_stalled(spent, 301.0)
