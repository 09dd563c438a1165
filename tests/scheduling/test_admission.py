from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
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
from llama_gguf.scheduling.balancer import Balancer, Slots
from llama_gguf.scheduling.sessions import NO_SESSION
from llama_gguf.scheduling.shares import FREE_SHARES


class Waiter:
    def __init__(self, key_id: str, then: Callable[[Waiter], None] = lambda _: None) -> None:
        self.key_id = key_id
        self.session = NO_SESSION
        self.then = then
        self.leases: list[SlotLease[str]] = []

    def __repr__(self) -> str:
        return f"<{self.key_id}>"

    def on_slot(self, lease: SlotLease[str]) -> None:
        self.leases.append(lease)
        self.then(self)

    def on_refused(self, error: GatewayError) -> None:
        raise AssertionError("admission rejects by its verdict, never by a call")


class Queue:
    """An admission to one engine, whose slots the test sets."""

    def __init__(self, *, slots: int = 1, queue_size: int = 100, **limits: Any) -> None:
        self.slots = Slots("engine", slots)
        self.balancer: Balancer[str] = Balancer()
        self.balancer.add(self.slots)
        self.admission = Admission(self.balancer, queue_size=queue_size, **limits)

    def arrive(self, waiter: Waiter) -> Verdict | None:
        """The verdict; None: the slot is granted at once, and ``waiter.leases`` has it."""
        verdict = self.admission.arrive(waiter, waiter.key_id)
        if isinstance(verdict, SlotLease):
            waiter.leases.append(verdict)
            return None
        return verdict

    def resize(self, slots: int) -> None:
        self.slots.total = slots
        self.balancer.changed(self.slots)
        self.admission.grant()


def order_of_grants(queue: Queue, keys: str) -> str:
    """The keys of requests in the order in which a single slot serves them."""
    served: list[Waiter] = []
    for key_id in keys:
        queue.arrive(Waiter(key_id, served.append))
    queue.resize(1)
    while queue.admission.running:
        served[-1].leases[0].release()
    return "".join(waiter.key_id for waiter in served)


# Any order of events ------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Random sequences of events, compared with a model that consists of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Waiter] = []
        self.waiting: list[Waiter] = []
        # By waiting key: how often each other key was granted a slot in the meantime.
        self.overtakes: dict[str, Counter[str]] = {}

    @initialize(
        slots=st.integers(0, 3),
        queue_size=st.integers(0, 8),
        per_key=st.integers(0, 4),
        running_per_key=st.integers(0, 2),
        is_shared=st.booleans(),
    )
    def begin(
        self, slots: int, queue_size: int, per_key: int, running_per_key: int, is_shared: bool
    ) -> None:
        self.queue_size = queue_size
        self.per_key = per_key
        self.running_per_key = running_per_key
        self.is_shared = is_shared
        self.queue = Queue(
            slots=slots,
            queue_size=queue_size,
            per_key=per_key,
            running_per_key=running_per_key,
            is_shared=lambda: is_shared,
        )
        self.admission = self.queue.admission

    def held_by(self, key_id: str) -> int:
        return sum(waiter.key_id == key_id for waiter in self.running + self.waiting)

    def waiting_of(self, key_id: str) -> int:
        return sum(waiter.key_id == key_id for waiter in self.waiting)

    def may_run(self, key_id: str) -> bool:
        running = sum(waiter.key_id == key_id for waiter in self.running)
        return not self.running_per_key or running < self.running_per_key

    def is_granted_at_once(self, key_id: str) -> bool:
        if len(self.running) >= self.admission.slots:
            return False
        if not self.running_per_key:
            return not self.waiting
        return self.may_run(key_id) and not self.waiting_of(key_id)

    def has_its_share(self, key_id: str) -> bool:
        would_wait = self.waiting_of(key_id) + 1
        would_be_free = self.queue_size - len(self.waiting) - 1
        return self.is_shared and would_wait > 1 and would_wait > FREE_SHARES * would_be_free

    def was_granted(self, waiter: Waiter) -> None:
        first_of_its_key = next(w for w in self.waiting if w.key_id == waiter.key_id)
        assert waiter is first_of_its_key
        assert len(waiter.leases) == 1
        assert self.admission.running == len(self.running) + 1 <= self.admission.slots
        self.forget(waiter)
        self.running.append(waiter)
        self.overtakes.pop(waiter.key_id, None)
        for other in {w.key_id for w in self.waiting} - {waiter.key_id}:
            if not self.may_run(other):
                continue
            overtakes = self.overtakes.setdefault(other, Counter())
            overtakes[waiter.key_id] += 1
            assert overtakes[waiter.key_id] == 1, "a key was served twice while another waited"

    def forget(self, waiter: Waiter) -> None:
        self.waiting.remove(waiter)
        if all(w.key_id != waiter.key_id for w in self.waiting):
            self.overtakes.pop(waiter.key_id, None)

    @rule(key_id=st.sampled_from("abc"))
    def arrive(self, key_id: str) -> None:
        waiter = Waiter(key_id, self.was_granted)
        if self.per_key and self.held_by(key_id) >= self.per_key:
            expected: Verdict | None = Verdict.KEY_IS_BUSY
        elif self.is_granted_at_once(key_id):
            expected = None
        elif len(self.waiting) >= self.queue_size:
            expected = Verdict.QUEUE_FULL
        elif self.has_its_share(key_id):
            expected = Verdict.SHARE_IS_FULL
        else:
            expected = Verdict.QUEUED

        verdict = self.queue.arrive(waiter)

        assert verdict is expected
        if verdict is None:
            self.running.append(waiter)
        elif verdict is Verdict.QUEUED:
            self.waiting.append(waiter)

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
        waiter.leases[0].release()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.running))
        self.running.remove(waiter)
        waiter.leases.pop().release()
        key_id = waiter.key_id
        has_slot = len(self.running) < self.admission.slots and (
            self.may_run(key_id) if self.running_per_key else not self.waiting
        )

        lease = self.admission.queue_again(waiter, key_id)

        assert (lease is not None) == has_slot
        if lease is None:
            self.waiting.insert(0, waiter)
        else:
            waiter.leases.append(lease)
            self.running.append(waiter)

    @rule(slots=st.integers(0, 3))
    def resize(self, slots: int) -> None:
        self.queue.resize(slots)

    @invariant()
    def counts_are_right(self) -> None:
        assert self.admission.running == len(self.running)
        assert self.admission.queued == len(self.waiting)
        assert set(self.admission.waiting()) == set(self.waiting)

    @invariant()
    def no_slot_is_free_while_a_request_waits_that_may_run(self) -> None:
        may_run = any(self.may_run(waiter.key_id) for waiter in self.waiting)
        assert not may_run or self.admission.running >= self.admission.slots

    def teardown(self) -> None:
        for waiter in list(self.waiting):
            self.forget(waiter)
            self.admission.leave(waiter)
        for waiter in self.running:
            waiter.leases[0].release()
        assert (self.admission.running, self.admission.queued) == (0, 0)
        assert not list(self.admission.waiting())


def test_in_any_order_of_events_no_slot_or_place_is_lost_and_no_key_starves() -> None:
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )


def test_a_key_at_its_running_limit_waits_and_another_key_is_granted_the_slot() -> None:
    queue = Queue(slots=3, running_per_key=1)
    first, second = Waiter("a"), Waiter("a")

    assert queue.arrive(first) is None
    assert queue.arrive(second) is Verdict.QUEUED
    assert queue.arrive(Waiter("b")) is None
    first.leases[0].release()

    assert len(second.leases) == 1


def test_a_request_that_is_sent_again_gets_a_slot_that_another_key_may_not_use() -> None:
    queue = Queue(slots=3, running_per_key=1)
    failed = Waiter("b")
    for waiter in (failed, Waiter("a"), Waiter("a")):
        queue.arrive(waiter)
    failed.leases.pop().release()

    assert queue.admission.queue_again(failed, "b") is not None


def test_a_slot_is_given_back_once_however_often_its_lease_is_released() -> None:
    queue = Queue(slots=1, per_key=2)
    running, second, third = Waiter("a"), Waiter("a"), Waiter("a")
    queue.arrive(running)
    queue.arrive(second)
    running.leases[0].release()
    running.leases[0].release()

    assert queue.arrive(third) is Verdict.QUEUED
    assert len(second.leases) == 1
    assert queue.admission.running == 1


def test_a_departed_request_keeps_its_slot_until_it_is_done() -> None:
    queue = Queue(slots=2, per_key=1, running_per_key=1)
    departed = Waiter("a")
    queue.arrive(departed)
    departed.leases[0].depart()
    waiter = Waiter("a")

    assert queue.arrive(waiter) is Verdict.QUEUED
    departed.leases[0].release()

    assert len(waiter.leases) == 1


# Single cases, with the numbers of the module's docstring -----------------------------------------


def test_2_a_free_slot_is_granted_at_once() -> None:
    queue = Queue(slots=2)

    assert [queue.arrive(Waiter("a")) for _ in range(3)] == [
        None,
        None,
        Verdict.QUEUED,
    ]


def test_3_a_request_rejected_by_a_full_queue_does_not_count_for_its_key() -> None:
    queue = Queue(slots=1, queue_size=1, per_key=3)
    running = Waiter("a")
    queue.arrive(running)
    queue.arrive(Waiter("a"))

    assert queue.arrive(Waiter("a")) is Verdict.QUEUE_FULL
    running.leases[0].release()
    assert queue.arrive(Waiter("a")) is Verdict.QUEUED  # two of its three, not three


def test_3_without_a_queue_a_free_slot_is_still_granted() -> None:
    queue = Queue(slots=1, queue_size=0)

    assert queue.arrive(Waiter("a")) is None
    assert queue.arrive(Waiter("a")) is Verdict.QUEUE_FULL


def test_a_key_that_floods_the_queue_delays_another_by_one_request() -> None:
    assert order_of_grants(Queue(slots=0), "aaaaaaaab") == "abaaaaaaa"


def test_keys_take_turns_and_requests_of_a_key_are_served_in_order() -> None:
    assert order_of_grants(Queue(slots=0), "aaabbc") == "abcaba"


def test_a_key_that_leaves_and_returns_loses_its_turn() -> None:
    queue = Queue(slots=0)
    gone, other, again = Waiter("a"), Waiter("b"), Waiter("a")
    queue.arrive(gone)
    queue.arrive(other)
    queue.admission.leave(gone)
    queue.arrive(again)

    queue.resize(1)

    assert (len(other.leases), len(again.leases)) == (1, 0)


def test_1_a_key_at_its_limit_is_busy_and_another_key_is_served() -> None:
    queue = Queue(slots=3, per_key=1)
    queue.arrive(Waiter("a"))

    assert queue.arrive(Waiter("a")) is Verdict.KEY_IS_BUSY
    assert queue.arrive(Waiter("b")) is None


def test_1_waiting_requests_count_towards_the_limit_of_their_key() -> None:
    queue = Queue(slots=0, per_key=1)
    waiter = Waiter("a")
    queue.arrive(waiter)

    assert queue.arrive(Waiter("a")) is Verdict.KEY_IS_BUSY
    queue.admission.leave(waiter)
    assert queue.arrive(Waiter("a")) is Verdict.QUEUED


def test_5_without_slots_all_requests_wait_and_run_when_there_are_some() -> None:
    queue = Queue(slots=0)
    waiters = [Waiter(key_id) for key_id in "aab"]
    for waiter in waiters:
        assert queue.arrive(waiter) is Verdict.QUEUED

    queue.resize(2)

    assert [len(waiter.leases) for waiter in waiters] == [1, 0, 1]
    assert (queue.admission.running, queue.admission.queued) == (2, 1)


def test_after_a_reduction_of_slots_running_requests_finish_and_none_starts() -> None:
    queue = Queue(slots=2)
    running = [Waiter("a"), Waiter("a")]
    for one in running:
        queue.arrive(one)
    waiter = Waiter("a")
    queue.arrive(waiter)

    queue.resize(1)
    running[0].leases[0].release()
    assert len(waiter.leases) == 0
    running[1].leases[0].release()
    assert len(waiter.leases) == 1


def test_leaving_without_waiting_raises_and_changes_nothing() -> None:
    queue = Queue(slots=1, per_key=9)
    running, waiting = Waiter("a"), Waiter("a")
    queue.arrive(running)
    queue.arrive(waiting)

    for stranger in (running, Waiter("a"), Waiter("z")):
        with pytest.raises(KeyError):
            queue.admission.leave(stranger)

    assert (queue.admission.running, queue.admission.queued) == (1, 1)
    assert queue.admission.waiting() == [waiting]


def test_a_request_that_ends_as_it_gets_its_slot_passes_it_on() -> None:
    queue = Queue(slots=1)
    first = Waiter("z")
    queue.arrive(first)
    order: list[str] = []

    def end_at_once(waiter: Waiter) -> None:
        order.append(waiter.key_id)
        waiter.leases[0].release()

    for key_id in "aabb" * 15:
        queue.arrive(Waiter(key_id, end_at_once))

    first.leases[0].release()

    assert "".join(order) == "ab" * 30
    assert (queue.admission.running, queue.admission.queued) == (0, 0)


def test_requests_may_arrive_and_leave_while_another_gets_its_slot() -> None:
    queue = Queue(slots=1)
    queue.arrive(Waiter("z"))
    gone, late = Waiter("c"), Waiter("d")

    def on_slot(_: Waiter) -> None:
        queue.admission.leave(gone)
        queue.arrive(late)

    for waiter in (Waiter("a", on_slot), gone, Waiter("b")):
        queue.arrive(waiter)

    queue.resize(4)

    assert (len(gone.leases), len(late.leases)) == (0, 1)
    assert (queue.admission.running, queue.admission.queued) == (4, 0)
