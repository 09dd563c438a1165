"""The restart loop, without processes: histories of lives, with a clock that jumps."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import pytest

from llama_gguf.engines.status import ChildState as S
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.managed_process import EndReason, Life, ManagedProcess, Reason
from llama_gguf.supervisor.restart_policy import Event as E
from llama_gguf.supervisor.restart_policy import RestartPolicy


class JumpingClock:
    """Nothing waits: a sleep only moves the time."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Plan:
    """What happens in one life."""

    returncode: int = 1
    ready_after: float | None = None
    seconds: float = 10.0
    """Until it dies, or is ended because of *end_reason*."""
    end_reason: EndReason | None = None
    spawn_error: OSError | None = None
    is_last: bool = False
    """``leave`` is called in this life, and the process is stopped."""


class FakeChild:
    def __init__(self, pid: int, plan: Plan, clock: JumpingClock) -> None:
        self.pid = pid
        self.last_lines = deque([f"the last line of {pid}"])
        self.was_out_of_memory = False
        self.returncode = plan.returncode
        self.term_seconds = 0.0
        self._plan = plan
        self._clock = clock
        self._stopped = asyncio.Event()

    async def wait(self) -> int:
        if self._plan.end_reason is None:
            await asyncio.sleep(0)  # the watching task comes first
            await self._clock.sleep(self._plan.seconds - (self._plan.ready_after or 0.0))
        else:
            await self._stopped.wait()
        return self.returncode

    async def stop(self, *, term_seconds: float) -> None:
        self.term_seconds = term_seconds
        self._stopped.set()


class History(ManagedProcess):
    """A process whose lives are *plans*; records what the loop does."""

    def __init__(self, policy: RestartPolicy, *plans: Plan) -> None:
        self.clock = JumpingClock()
        super().__init__(policy, self.clock)
        self.plans = list(plans)
        self.calls: list[tuple[object, ...]] = []
        self.deaths: list[Life] = []
        self.children: list[FakeChild] = []
        self.is_stopping = False

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[Child]:
        plan = self.plans.pop(0)
        if plan.spawn_error is not None:
            raise plan.spawn_error
        child = FakeChild(100 + len(self.children), plan, self.clock)
        self.children.append(child)
        self.calls.append(("spawned", self.clock.time))
        yield cast("Child", child)
        self.calls.append(("reaped", self.state))

    async def _watch(self, child: Child) -> EndReason | None:
        plan = cast("FakeChild", child)._plan
        if plan.ready_after is not None:
            self.clock.time += plan.ready_after
            self._move(E.SERVES)
        if plan.is_last:
            self.leave()
        if plan.end_reason is None:
            return None
        if plan.end_reason.reason is Reason.IDLE:
            self._move(E.SLEEPS)
        self.clock.time += plan.seconds - (plan.ready_after or 0.0)
        return plan.end_reason

    def _is_stopping(self) -> bool:
        return self.is_stopping

    async def _until_requested(self) -> None:
        self.calls.append(("wanted",))

    def _on_death(self, life: Life) -> None:
        self.deaths.append(life)

    def _on_restart_due(self, seconds: float) -> None:
        self.calls.append(("restart in", seconds))

    def _on_given_up(self, exit_status: int) -> None:
        self.calls.append(("given up", exit_status))

    def play(self) -> int:
        return asyncio.run(self.run())


HANG: Final = EndReason(Reason.HANG, 3.0, "It did not respond.")
IDLE: Final = EndReason(Reason.IDLE, 10.0)
LAST: Final = Plan(0, ready_after=1.0, is_last=True)


def test_a_death_is_followed_by_a_delay_and_the_next_life() -> None:
    history = History(RestartPolicy(), Plan(ready_after=2.0), LAST)

    assert history.play() == 0

    assert history.calls == [
        ("spawned", 0.0),
        ("reaped", S.BACKOFF),
        ("restart in", 1.0),
        ("spawned", 11.0),
        ("reaped", S.STOPPING),
    ]
    assert (history.state, history.child) == (S.STOPPED, None)


def test_a_finished_life_is_a_value_with_everything_that_is_known_of_it() -> None:
    history = History(RestartPolicy(), Plan(-signal.SIGSEGV, ready_after=2.0), LAST)

    history.play()

    (life,) = history.deaths
    assert life == Life(
        pid=100,
        returncode=-signal.SIGSEGV,
        spawned_at=0.0,
        ended_at=10.0,
        ready_since=2.0,
        last_lines=("the last line of 100",),
    )
    assert (life.seconds, life.reason, life.exit_status) == (10.0, Reason.CRASH, 139)
    assert life.status_text == "signal SIGSEGV"


def test_nothing_of_a_life_is_carried_into_the_next() -> None:
    lives = [Plan(ready_after=2.0, end_reason=HANG), Plan(3)]
    history = History(RestartPolicy(), *lives, LAST)

    history.play()

    assert [life.reason for life in history.deaths] == [Reason.HANG, Reason.CRASH]
    assert [life.ready_since for life in history.deaths] == [2.0, None]
    assert history._policy.restarts == {"hang": 1, "crash": 1}


def test_a_process_that_has_to_be_ended_is_stopped_within_its_time() -> None:
    history = History(RestartPolicy(), Plan(0, ready_after=2.0, end_reason=HANG), LAST)

    history.play()

    assert history.children[0].term_seconds == 3.0
    assert history.deaths[0].end_reason == HANG
    assert history.deaths[0].exit_status == 1


def test_an_idle_process_is_no_death_and_waits_until_it_is_wanted() -> None:
    history = History(RestartPolicy(), Plan(0, ready_after=2.0, end_reason=IDLE), LAST)

    assert history.play() == 0

    assert history.deaths == []
    assert history.calls == [
        ("spawned", 0.0),
        ("reaped", S.ASLEEP),
        ("wanted",),
        ("spawned", 10.0),
        ("reaped", S.STOPPING),
    ]


def test_a_process_that_cannot_be_spawned_has_died() -> None:
    history = History(RestartPolicy(), Plan(spawn_error=OSError(11, "no more processes")), LAST)

    assert history.play() == 0

    (life,) = history.deaths
    assert (life.pid, life.spawn_error, life.exit_status) == (None, "no more processes", 1)
    assert history.calls[0] == ("restart in", 1.0)


def test_a_crash_loop_is_given_up_with_the_status_of_the_last_death() -> None:
    lives = [Plan(1, ready_after=2.0), Plan(1), Plan(9)]
    history = History(RestartPolicy(max_deaths=2), *lives)

    assert history.play() == 9

    assert history.state is S.FAILED
    assert [call for call in history.calls if call[0] != "reaped"] == [
        ("spawned", 0.0),
        ("restart in", 1.0),
        ("spawned", 11.0),
        ("restart in", 2.0),
        ("spawned", 23.0),
        ("given up", 9),
    ]


@pytest.mark.parametrize("max_deaths", [5, 0])
def test_a_death_while_serve_stops_is_the_last_and_no_failure(max_deaths: int) -> None:
    history = History(RestartPolicy(max_deaths=max_deaths), Plan(1, ready_after=2.0))
    history.is_stopping = True

    assert history.play() == 0

    assert len(history.deaths) == 1
    assert len(history.calls) == 2


def test_leaving_before_the_first_life_spawns_nothing() -> None:
    history = History(RestartPolicy(), Plan())
    history.leave()

    assert history.play() == 0

    assert (history.calls, history.state) == ([], S.STOPPED)


def test_a_fault_in_watching_ends_the_loop() -> None:
    class Faulty(History):
        async def _watch(self, child: Child) -> EndReason | None:
            raise ZeroDivisionError

    history = Faulty(RestartPolicy(), Plan(end_reason=HANG))

    with pytest.raises(ExceptionGroup) as raised:
        history.play()

    assert raised.group_contains(ZeroDivisionError)
    assert history.child is not None, "its caller can still stop it"
