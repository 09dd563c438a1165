from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from llama_gguf.engines.status import ChildState as S
from llama_gguf.errors import IllegalTransition
from llama_gguf.supervisor.restart_policy import (
    LEAVING,
    TRANSITIONS,
    GiveUp,
    RestartPolicy,
    SpawnAt,
)
from llama_gguf.supervisor.restart_policy import Event as E


class At:
    """The time of the next events in a history."""

    def __init__(self, now: float) -> None:
        self.now = now


class Died:
    """One death in a history: its time and status, and the expected decision."""

    def __init__(self, now: float, then: SpawnAt | GiveUp, *, status: int = 1) -> None:
        self.now = now
        self.then = then
        self.status = status


UP = (E.SPAWNED, E.SERVES)
HISTORIES: dict[str, tuple[Callable[[], RestartPolicy], list[E | At | Died], S]] = {
    "it serves and continues to serve": (RestartPolicy, [*UP], S.READY),
    "it dies once and is restarted": (
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
    "a minute of serving forgives earlier deaths": (
        partial(RestartPolicy, max_deaths=2),
        [
            *(*UP, Died(0.0, SpawnAt(1.0))),
            *(E.SPAWNED, Died(2.0, SpawnAt(4.0))),
            *(At(10.0), *UP, Died(70.0, SpawnAt(71.0))),
            *(E.SPAWNED, Died(72.0, SpawnAt(74.0))),
        ],
        S.BACKOFF,
    ),
    "a death soon after it serves is not forgiven": (
        partial(RestartPolicy, max_deaths=2),
        [
            *(*UP, Died(59.9, SpawnAt(60.9))),
            *(At(61.0), *UP, Died(62.0, SpawnAt(64.0))),
            *(At(65.0), *UP, Died(124.9, GiveUp(1))),
        ],
        S.FAILED,
    ),
    "a long service that ends in sleep forgives, too": (
        partial(RestartPolicy, max_deaths=1),
        [
            *(*UP, Died(0.0, SpawnAt(1.0))),
            *(At(10.0), *UP, At(100.0), E.SLEEPS, At(200.0), E.SPAWNED),
            Died(201.0, SpawnAt(202.0)),
        ],
        S.BACKOFF,
    ),
    "it falls asleep and is started by a request": (
        RestartPolicy,
        [*UP, E.SLEEPS, E.SPAWNED, E.SERVES],
        S.READY,
    ),
    "it falls asleep and wakes by itself": (RestartPolicy, [*UP, E.SLEEPS, E.SERVES], S.READY),
    "it dies in its sleep": (
        RestartPolicy,
        [*UP, E.SLEEPS, Died(5.0, SpawnAt(6.0)), *UP],
        S.READY,
    ),
    "it hangs, is ended and is restarted": (
        RestartPolicy,
        [*UP, E.HANGS, Died(100.0, SpawnAt(101.0)), *UP],
        S.READY,
    ),
    "a load that hangs for the first time is the last": (
        partial(RestartPolicy, max_first_deaths=0),
        [E.SPAWNED, E.HANGS, Died(300.0, GiveUp(143), status=143)],
        S.FAILED,
    ),
    "randomness shortens a delay by a quarter at most": (
        partial(RestartPolicy, rng=lambda: 1.0),
        [*UP, Died(100.0, SpawnAt(100.75)), E.SPAWNED, Died(101.0, SpawnAt(102.5))],
        S.BACKOFF,
    ),
    "stopped while it sleeps": (RestartPolicy, [*UP, E.SLEEPS, E.STOP, E.GONE], S.STOPPED),
    "stopped after it has been given up": (
        partial(RestartPolicy, max_deaths=0),
        [E.SPAWNED, Died(0.0, GiveUp(1)), E.STOP],
        S.FAILED,
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
    "no death is tolerated if max_deaths is 0": (
        partial(RestartPolicy, max_deaths=0),
        [*UP, Died(0.0, GiveUp(1))],
        S.FAILED,
    ),
    "a child that never served is given up at once": (
        partial(RestartPolicy, max_deaths=5, max_first_deaths=0),
        [E.SPAWNED, Died(7.0, GiveUp(1))],
        S.FAILED,
    ),
    "a child that has served gets its chances, also during a restart": (
        partial(RestartPolicy, max_deaths=2, max_first_deaths=0),
        [*UP, Died(0.0, SpawnAt(1.0)), E.SPAWNED, Died(2.0, SpawnAt(4.0))],
        S.BACKOFF,
    ),
    "a child that cannot be spawned has died": (
        RestartPolicy,
        [Died(0.0, SpawnAt(1.0)), E.SPAWNED],
        S.LOADING,
    ),
    "stopped while it serves": (RestartPolicy, [*UP, E.STOP, E.GONE], S.STOPPED),
    "stopped while it loads": (RestartPolicy, [E.SPAWNED, E.STOP, E.GONE], S.STOPPED),
    "stopped before the first start": (RestartPolicy, [E.STOP], S.STOPPED),
    "stopped between two starts": (
        RestartPolicy,
        [*UP, Died(0.0, SpawnAt(1.0)), E.STOP],
        S.STOPPED,
    ),
}


@pytest.mark.parametrize(("make", "history", "end"), HISTORIES.values(), ids=HISTORIES.keys())
def test_a_history(make: Callable[[], RestartPolicy], history: list[E | At | Died], end: S) -> None:
    policy = make()
    now = 0.0
    for happened in history:
        if isinstance(happened, At):
            now = happened.now
        elif isinstance(happened, Died):
            now = happened.now
            assert policy.died(happened.status, now) == happened.then
        else:
            policy.on(happened, now)

    assert policy.state is end


def test_restarts_are_counted_by_reason_and_giving_up_is_none() -> None:
    policy = RestartPolicy(max_deaths=2)
    for reason in ("crash", "hang", "crash"):
        policy.on(E.SPAWNED, 0.0)
        policy.died(1, 0.0, reason=reason)

    assert (policy.restarts, policy.state) == ({"crash": 1, "hang": 1}, S.FAILED)


def test_the_longest_crash_loop_that_a_setting_allows_keeps_its_delay() -> None:
    policy = RestartPolicy(max_delay=60.0, max_deaths=1000)
    for _ in range(1000):
        policy.on(E.SPAWNED, 5.0)
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
        ([E.SPAWNED], E.SLEEPS),
        ([], E.HANGS),
        ([*UP, E.SLEEPS], E.SLEEPS),
        ([*UP, E.HANGS], E.SERVES),
        ([E.SPAWNED, E.DIED, E.GIVEN_UP], E.SPAWNED),
    ],
    ids=lambda value: " ".join(e.name for e in value) if isinstance(value, list) else value.name,
)
def test_an_impossible_event_raises_and_changes_nothing(history: list[E], then: E) -> None:
    policy = RestartPolicy()
    for event in history:
        policy.on(event, 0.0)
    before = policy.state

    with pytest.raises(IllegalTransition, match=f"{then.name} while {before.name}"):
        policy.on(then, 0.0)

    assert policy.state is before


def test_a_death_after_a_stop_is_no_crash() -> None:
    policy = RestartPolicy()
    for event in (*UP, E.STOP):
        policy.on(event, 0.0)

    with pytest.raises(IllegalTransition):
        policy.died(0, 1.0)

    assert not policy.restarts


def test_a_leaving_child_is_never_restarted() -> None:
    for (state, _), then in TRANSITIONS.items():
        if state in LEAVING:
            assert then in LEAVING


def test_every_state_but_those_of_a_gateway_on_its_own_is_reached_from_the_start() -> None:
    reached, size = {S.STARTING}, 0
    while len(reached) > size:
        size = len(reached)
        reached |= {then for (state, _), then in TRANSITIONS.items() if state in reached}

    assert set(S) - reached == {S.UNREACHABLE}
