"""Several engines, which come, go, drain and fail, and sessions among them, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llama_gguf.errors import GatewayError
from llama_gguf.scheduling.admission import Admission, SlotLease, Verdict
from llama_gguf.scheduling.balancer import ROUNDS, Balancer, Slots
from llama_gguf.scheduling.sessions import NO_SESSION

Engine = Slots[str]


class Waiter:
    def __init__(
        self,
        key_id: str = "a",
        session: int = NO_SESSION,
        then: Callable[[Waiter], None] = lambda _: None,
    ) -> None:
        self.key_id = key_id
        self.session = session
        self.then = then
        self.lease: SlotLease[str] | None = None
        self.own: Engine | None = None
        """The engine that it waits for."""
        self.ends_at_once = False

    def __repr__(self) -> str:
        return f"<{self.key_id} {self.session}>"

    @property
    def slots(self) -> Engine:
        assert self.lease is not None
        return self.lease.slots

    def release(self) -> None:
        assert self.lease is not None
        self.lease.release()
        self.lease = None

    def on_slot(self, lease: SlotLease[str]) -> None:
        assert self.lease is None
        self.lease = lease
        self.then(self)

    def on_refused(self, error: GatewayError) -> None:
        raise AssertionError("admission rejects by its verdict, never by a call")


class Fleet:
    """An admission to several engines, whose slots the test sets."""

    def __init__(self, *totals: int, **limits: Any) -> None:
        self.balancer: Balancer[str] = Balancer()
        self.admission = Admission(self.balancer, **{"queue_size": 100, **limits})
        self.engines: list[Engine] = []
        for total in totals:
            self.add(total)

    def add(self, total: int) -> Engine:
        slots = Slots(f"engine {len(self.engines)}", total)
        self.engines.append(slots)
        self.balancer.add(slots)
        self.admission.grant()
        return slots

    def resize(self, slots: Engine, total: int) -> None:
        slots.total = total
        self.balancer.changed(slots)
        self.admission.grant()

    def remove(self, slots: Engine) -> None:
        self.engines.remove(slots)
        self.balancer.remove(slots)
        self.admission.grant()

    def arrive(self, waiter: Waiter) -> Verdict | None:
        verdict = self.admission.arrive(waiter, waiter.key_id, waiter.session)
        if isinstance(verdict, SlotLease):
            waiter.lease = verdict
            return None
        return verdict

    def queue_again(self, waiter: Waiter) -> SlotLease[str] | None:
        return self.admission.queue_again(waiter, waiter.key_id, waiter.session)

    def run(self, *sessions: int, key_id: str = "a") -> list[Waiter]:
        """Requests that arrive one after the other."""
        waiters = [Waiter(key_id, session) for session in sessions]
        for waiter in waiters:
            self.arrive(waiter)
        return waiters


def load_of(slots: Engine, count: int) -> Fraction:
    return Fraction(count, slots.total)


class AnyOrder(RuleBasedStateMachine):
    """Random sequences of events; what the model knows of a request, it notes as it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Waiter] = []
        self.waiting: list[Waiter] = []
        self.gone: list[Engine] = []
        self.pins: dict[int, Engine] = {}
        """By session."""
        self.moves: Counter[str] = Counter()
        # By waiting key and what it waits for: how often others were granted a slot meanwhile
        # that one of its requests could have used.
        self.overtakes: dict[tuple[str, Engine | None], Counter[str]] = {}

    @initialize(
        totals=st.lists(st.integers(0, 3), min_size=1, max_size=4),
        queue_size=st.integers(4, 30),
    )
    def begin(self, totals: list[int], queue_size: int) -> None:
        self.fleet = Fleet(*totals, queue_size=queue_size)
        self.balancer, self.admission = self.fleet.balancer, self.fleet.admission

    # The model ----------------------------------------------------------------------------------

    def count_at(self, slots: Engine) -> int:
        running = sum(waiter.slots is slots for waiter in self.running)
        return running + sum(waiter.own is slots for waiter in self.waiting)

    def least_load(self) -> Fraction:
        ready = [slots for slots in self.fleet.engines if slots.total]
        return min(load_of(slots, self.count_at(slots)) for slots in ready)

    def free(self) -> list[Engine]:
        engines = self.fleet.engines
        return [
            slots
            for slots in engines
            if sum(waiter.slots is slots for waiter in self.running) < slots.total
        ]

    def is_beyond(self, slots: Engine, count: int) -> bool:
        """Whether *slots* with *count* requests are more than the bound allows."""
        return load_of(slots, count) > self.least_load() + Fraction(ROUNDS)

    def reason(self, slots: Engine, *, itself: int) -> str | None:
        """Why a session may leave its engine; *itself*: whether its request is counted there."""
        if slots not in self.fleet.engines:
            return "gone"
        if not slots.total:
            return "not_ready"
        return "overloaded" if self.is_beyond(slots, self.count_at(slots) - itself) else None

    def pinned(self, session: int) -> Engine | None:
        number = self.balancer.sessions.engine_of(session)
        return next((slots for slots in self.fleet.engines if slots.number == number), None)

    def check_engine(self, waiter: Waiter) -> None:
        """*waiter* has a slot now; the model is still as before."""
        slots = waiter.slots
        assert sum(each.slots is slots for each in self.running) < slots.total
        if not waiter.session:
            return
        old = self.pins.get(waiter.session)
        reason = None
        if old is not None and old is not slots:
            reason = self.reason(old, itself=int(waiter.own is old))
        new = self.pinned(waiter.session)
        if old is None or reason or (waiter.own not in (None, slots) and new is slots):
            assert new is slots
            if old is not None and old is not slots:
                assert reason or self.reason(waiter.own or slots, itself=1)
                self.moves[reason or "overloaded"] += 1
            self.pins[waiter.session] = slots
        else:
            # It is where it was; another request of it waited for any engine, at most.
            assert new is old
            assert old is slots or waiter in self.waiting

    def was_granted(self, waiter: Waiter) -> None:
        slots = waiter.slots
        usable = [w for w in self.waiting if w.own in (None, slots, waiter.own)]
        own = [w for w in usable if w.key_id == waiter.key_id]
        assert waiter is own[0], "not the first of its key"
        self.check_engine(waiter)
        self.forget(waiter)
        self.overtakes = {k: c for k, c in self.overtakes.items() if k[0] != waiter.key_id}
        for key_id, engine in {(w.key_id, w.own) for w in usable} - {(waiter.key_id, waiter.own)}:
            if key_id != waiter.key_id:
                overtakes = self.overtakes.setdefault((key_id, engine), Counter())
                overtakes[waiter.key_id] += 1
                assert overtakes[waiter.key_id] == 1, "a key was served twice, another waited"
        self.running.append(waiter)
        if waiter.ends_at_once:
            self.running.remove(waiter)
            waiter.release()

    def forget(self, waiter: Waiter) -> None:
        self.waiting.remove(waiter)
        if all((w.key_id, w.own) != (waiter.key_id, waiter.own) for w in self.waiting):
            self.overtakes.pop((waiter.key_id, waiter.own), None)

    def queue(self, waiter: Waiter, own: Engine | None, place: int) -> None:
        """*waiter* has to wait for *own*, or for any engine."""
        if own is None:
            assert not self.free()
        else:
            assert own not in self.free()
            assert not self.is_beyond(own, self.count_at(own))
            assert own is self.pins.get(waiter.session)
        waiter.own = own
        self.waiting.insert(place, waiter)

    def awaited_after(self, act: Callable[[], Any]) -> tuple[Any, Engine | None]:
        """The result of *act*, and the engine for which one more request waits after it."""
        before = {id(slots): slots.waiting for slots in self.fleet.engines}
        result = act()
        longer = [slots for slots in self.fleet.engines if slots.waiting > before[id(slots)]]
        return result, next(iter(longer), None)

    # What happens -------------------------------------------------------------------------------

    @rule(
        key_id=st.sampled_from("abc"),
        session=st.sampled_from([NO_SESSION, *range(1, 8)]),
        ends_at_once=st.booleans(),
    )
    def arrive(self, key_id: str, session: int, ends_at_once: bool) -> None:
        waiter = Waiter(key_id, session, self.was_granted)
        verdict, own = self.awaited_after(lambda: self.fleet.arrive(waiter))
        if verdict is None:
            self.check_engine(waiter)
            self.running.append(waiter)
        elif verdict is Verdict.QUEUED:
            waiter.ends_at_once = ends_at_once
            self.queue(waiter, own, len(self.waiting))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.forget(waiter)
        self.admission.leave(waiter)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.running))
        self.running.remove(waiter)
        waiter.release()

    @rule(data=st.data(), total=st.integers(0, 3))
    def resize(self, data: st.DataObject, total: int) -> None:
        if self.fleet.engines:
            self.fleet.resize(data.draw(st.sampled_from(self.fleet.engines)), total)

    @precondition(lambda self: len(self.fleet.engines) < 6)
    @rule(total=st.integers(0, 3))
    def come(self, total: int) -> None:
        self.fleet.add(total)

    @precondition(lambda self: self.fleet.engines)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        slots = data.draw(st.sampled_from(self.fleet.engines))
        self.gone.append(slots)
        self.pins = {session: at for session, at in self.pins.items() if at is not slots}
        self.fleet.remove(slots)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def return_(self, data: st.DataObject) -> None:
        slots = data.draw(st.sampled_from(self.gone))
        self.gone.remove(slots)
        slots.total = 2
        self.fleet.engines.append(slots)
        self.balancer.add(slots)
        self.admission.grant()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """An engine fails; its requests are sent again."""
        slots = data.draw(st.sampled_from(self.running)).slots
        if slots in self.fleet.engines:
            self.fleet.resize(slots, 0)
        for waiter in [waiter for waiter in self.running if waiter.slots is slots]:
            self.running.remove(waiter)
            waiter.release()
            lease, own = self.awaited_after(partial(self.fleet.queue_again, waiter))
            if lease is None:
                waiter.then = self.was_granted
                self.queue(waiter, own, 0)
            else:
                waiter.own = None
                waiter.lease = lease
                self.check_engine(waiter)
                self.running.append(waiter)

    # What always holds --------------------------------------------------------------------------

    @invariant()
    def counts_are_right(self) -> None:
        assert self.admission.running == len(self.running)
        assert self.admission.queued == len(self.waiting)
        assert set(self.admission.waiting()) == set(self.waiting)
        assert self.admission.slots == sum(slots.total for slots in self.fleet.engines)
        for slots in (*self.fleet.engines, *self.gone):
            assert slots.in_use == sum(waiter.slots is slots for waiter in self.running)
            assert slots.waiting == sum(waiter.own is slots for waiter in self.waiting)

    @invariant()
    def no_request_waits_while_a_slot_that_it_may_use_is_free(self) -> None:
        free = self.free()
        for waiter in self.waiting if free else ():
            own = waiter.own
            assert own is not None
            assert own not in free
            assert own in self.fleet.engines
            assert own.total
            assert not self.is_beyond(own, self.count_at(own) - 1)

    @invariant()
    def sessions_are_where_they_were_seen(self) -> None:
        for session, slots in self.pins.items():
            assert self.pinned(session) is slots
        assert self.balancer.moves["overloaded"] == self.moves["overloaded"]
        assert self.balancer.moves["not_ready"] == self.moves["not_ready"]

    def teardown(self) -> None:
        for waiter in list(self.waiting):
            self.waiting.remove(waiter)
            self.admission.leave(waiter)
        for waiter in self.running:
            waiter.release()
        assert (self.admission.running, self.admission.queued) == (0, 0)
        if len(self.fleet.engines) > 1:  # the load of the only engine is not kept
            assert all(slots.load == 0 for slots in self.fleet.engines if slots.total)


def test_in_any_order_of_events_the_bound_holds_and_sessions_move_only_for_a_reason() -> None:
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )


# Single cases -------------------------------------------------------------------------------------


def test_a_session_stays_where_its_first_request_was() -> None:
    fleet = Fleet(2, 2, 2)
    first = fleet.run(1, 2, 3)
    engines = [waiter.slots for waiter in first]
    for waiter in first:
        waiter.release()

    assert [waiter.slots for waiter in fleet.run(3, 2, 1)] == engines[::-1]
    assert not fleet.balancer.moves


def test_sessions_that_come_one_by_one_are_spread_over_idle_engines() -> None:
    fleet = Fleet(2, 2, 2)
    engines = []
    for session in range(1, 7):
        (waiter,) = fleet.run(session)
        engines.append(waiter.slots)
        waiter.release()

    assert Counter(engine.engine for engine in engines).most_common(1)[0][1] == 2


def test_a_request_waits_for_its_engine_though_another_is_idle() -> None:
    fleet = Fleet(1, 1)
    first, second = fleet.run(1, 1)

    assert second.lease is None
    first.release()
    assert second.slots is fleet.engines[0]


def test_beyond_the_bound_a_session_moves_to_the_least_busy_engine_and_stays_there() -> None:
    fleet = Fleet(1, 1)
    first, *waiting, moved = fleet.run(1, 1, 1, 1)

    assert first.slots is fleet.engines[0]
    assert [waiter.lease for waiter in waiting] == [None, None]
    assert moved.slots is fleet.engines[1]
    assert fleet.balancer.moves == {"overloaded": 1}
    moved.release()
    assert fleet.run(1)[0].slots is fleet.engines[1]


def test_a_request_that_waits_moves_once_others_have_become_idle() -> None:
    fleet = Fleet(1, 1)
    _, other, *waiting = fleet.run(1, 2, 1, 1, 1)
    assert all(waiter.lease is None for waiter in waiting)

    other.release()

    assert waiting[0].slots is fleet.engines[1]
    # They wait for the first engine, within the bound again.
    assert [waiter.lease for waiter in waiting[1:]] == [None, None]


def test_an_engine_with_more_slots_takes_more_before_a_session_leaves_it() -> None:
    fleet = Fleet(4, 1)
    waiters = fleet.run(*[1] * 10)

    assert [waiter.lease is None for waiter in waiters] == [False] * 4 + [True] * 5 + [False]
    assert waiters[9].slots is fleet.engines[1]


def test_slots_that_an_engine_gains_go_to_the_requests_that_wait_for_it() -> None:
    fleet = Fleet(2, 1)
    waiters = fleet.run(1, 2, 1, 1, 1)
    assert [waiter.lease is None for waiter in waiters] == [False, False, False, True, True]

    fleet.resize(fleet.engines[0], 3)

    assert waiters[3].slots is fleet.engines[0]


def test_sessions_of_an_engine_that_is_not_ready_or_gone_move() -> None:
    fleet = Fleet(1, 1, 1)
    waiters = fleet.run(1, 2)
    for waiter in waiters:
        waiter.release()
    fleet.resize(fleet.engines[0], 0)
    fleet.remove(fleet.engines[1])

    assert [waiter.slots.engine for waiter in fleet.run(1)] == ["engine 2"]
    assert fleet.balancer.moves == {"not_ready": 1}
    fleet.resize(fleet.engines[0], 1)
    assert [waiter.slots.engine for waiter in fleet.run(2)] == ["engine 0"]
    assert fleet.balancer.moves == {"not_ready": 1, "gone": 1}


def test_requests_that_wait_for_an_engine_that_goes_use_any() -> None:
    fleet = Fleet(1, 1)
    first, second, waiting = fleet.run(1, 2, 1)

    fleet.remove(fleet.engines[0])
    second.release()

    assert waiting.slots is fleet.engines[0]
    first.release()
    assert fleet.run(3)[0].lease is None


def test_an_engine_that_returns_has_no_sessions() -> None:
    fleet = Fleet(1, 1)
    (first,) = fleet.run(1)
    first.release()
    slots = fleet.engines[0]
    fleet.remove(slots)
    slots.total = 1
    fleet.balancer.add(slots)
    (other,) = fleet.run(2)

    assert other.slots is not slots
    assert fleet.run(1)[0].slots is slots  # the least busy, and no move: it is a new number
    assert fleet.balancer.moves == {"gone": 1}


def test_a_key_that_floods_one_engine_does_not_delay_another_there() -> None:
    fleet = Fleet(2, 2)
    fleet.run(1, 2, 1, 2)
    order: list[str] = []
    for key_id in ("flood", "flood", "other"):
        waiter = Waiter(key_id, 1, lambda waiter: order.append(waiter.key_id))
        assert fleet.arrive(waiter) is Verdict.QUEUED

    fleet.resize(fleet.engines[0], 5)

    assert order == ["flood", "other", "flood"]


def test_a_request_is_granted_within_another_grant() -> None:
    """A client may send its next requests while another is granted a slot."""
    fleet = Fleet(2, 2, 4)
    first, *_ = fleet.run(1, 2, 3, 1, 3, 3, 3)
    late = [Waiter("late", 2), Waiter("late", 2)]

    def on_slot(_: Waiter) -> None:
        for waiter in late:
            assert fleet.arrive(waiter) is Verdict.QUEUED

    for waiter in (Waiter("b", 1, on_slot), Waiter("c", 1)):
        assert fleet.arrive(waiter) is Verdict.QUEUED
    first.release()

    assert late[0].slots is fleet.engines[1]
    assert late[1].lease is None


def test_of_many_engines_the_least_busy_one_is_chosen() -> None:
    fleet = Fleet(*[4] * 64)
    waiters = fleet.run(*[NO_SESSION] * 128)

    assert {slots.in_use for slots in fleet.engines} == {2}
    freed = waiters[77].slots
    waiters[77].release()
    assert fleet.run(NO_SESSION)[0].slots is freed
