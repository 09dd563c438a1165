from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llama_gguf.scheduling.fair_queue import LOW_EVERY, FairQueue, Turns


def always(_key_id: str) -> bool:
    return True


Request = tuple[str, int]
Queue = FairQueue[Request, str]


def taken_from(queue: Queue, may_run: Callable[[str], bool] = always) -> Request | None:
    """The next request."""
    taken = queue.take(may_run)
    return None if taken is None else taken[0]


def queue_of(turns: Mapping[str, Turns], arrivals: str = "") -> Queue:
    """A queue with requests in the order of *arrivals*; each is its key and its number."""
    queue: Queue = FairQueue(lambda key_id: turns.get(key_id, Turns()))
    for number, key_id in enumerate(arrivals):
        queue.add((key_id, number), key_id)
    return queue


def served(queue: Queue, count: int | None = None) -> str:
    """The keys of the next *count* requests; of all, by default."""
    taken = [taken_from(queue) for _ in range(queue.size if count is None else count)]
    return "".join(request[0] for request in taken if request is not None)


# Weights ------------------------------------------------------------------------------------------


def test_a_key_has_as_many_turns_per_round_as_its_weight() -> None:
    queue = queue_of({"a": Turns(3), "c": Turns(2)}, "abc" * 6)

    assert served(queue) == "aaabcc" * 2 + "bcc" + "bbb"


def test_without_weights_keys_take_turns() -> None:
    assert served(queue_of({}, "aaaabbc")) == "abcabaa"


def test_requests_of_a_key_are_served_in_the_order_of_their_arrival() -> None:
    queue = queue_of({"a": Turns(2)}, "abaabab")
    taken = [taken_from(queue) for _ in range(7)]

    assert [request for request in taken if request and request[0] == "a"] == [
        ("a", number) for number in (0, 2, 3, 5)
    ]


def test_one_that_is_queued_again_is_the_next_of_its_key() -> None:
    queue = queue_of({}, "ab")
    queue.add_first(("a", 9), "a")

    assert [taken_from(queue) for _ in range(3)] == [("a", 9), ("b", 1), ("a", 0)]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=1),
    st.integers(1, 5),
)
def test_keys_with_enough_requests_get_shares_in_proportion_to_their_weights(
    weights: dict[str, int], rounds: int
) -> None:
    turns = {key_id: Turns(weight) for key_id, weight in weights.items()}
    total = sum(weights.values())
    queue = queue_of(turns, "".join(sorted(weights)) * (rounds * max(weights.values())))

    shares = Counter(served(queue, rounds * total))

    assert shares == {key_id: rounds * weight for key_id, weight in weights.items()}


# Priority -----------------------------------------------------------------------------------------

LOW = Turns(is_low=True)


def test_a_key_of_low_priority_yields_and_still_moves() -> None:
    queue = queue_of({"z": LOW}, "z" * 3 + "a" * 2 * LOW_EVERY)

    block = "a" * (LOW_EVERY - 1) + "z"
    assert served(queue) == block * 2 + "aaz"


def test_without_others_a_key_of_low_priority_is_served_at_once() -> None:
    queue = queue_of({"z": LOW}, "zz")
    queue.add(("a", 9), "a")

    assert served(queue) == "azz"


def test_keys_of_low_priority_share_their_grants_by_weight() -> None:
    queue = queue_of({"y": Turns(2, is_low=True), "z": LOW}, "yz" * 6)

    assert served(queue) == "yyz" * 3 + "zzz"


def test_one_of_low_priority_is_served_while_no_other_may_run() -> None:
    queue = queue_of({"z": LOW}, "az")

    assert taken_from(queue, lambda key_id: key_id != "a") == ("z", 1)
    assert taken_from(queue, lambda key_id: key_id != "a") is None
    assert queue.size == 1


@pytest.mark.parametrize(("before", "after"), [(Turns(), LOW), (LOW, Turns())])
def test_a_changed_priority_applies_with_the_next_request_of_the_key(
    before: Turns, after: Turns
) -> None:
    turns = {"a": before, "b": Turns() if before is LOW else LOW}
    queue = queue_of(turns, "aab")
    turns["a"] = after
    turns["b"] = Turns() if after is LOW else LOW
    queue.add(("a", 3), "a")
    queue.add(("b", 4), "b")

    assert served(queue) == ("bbaaa" if after is LOW else "aaabb")
    assert (queue.size, queue.all()) == (0, [])


# Any order of events ------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Random histories: what each key may lose to the others while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.waiting: list[tuple[str, int]] = []
        # By waiting key: grants to each other key since it began to wait, or since its last grant.
        self.others: dict[str, Counter[str]] = {}

    @initialize(
        turns=st.fixed_dictionaries(
            {key_id: st.builds(Turns, st.integers(1, 4), is_low=st.booleans()) for key_id in "abcd"}
        )
    )
    def begin(self, turns: dict[str, Turns]) -> None:
        self.turns = turns
        self.queue = queue_of(turns)

    @rule(key_id=st.sampled_from("abcd"), count=st.integers(1, 8), is_again=st.booleans())
    def arrive(self, key_id: str, count: int, is_again: bool) -> None:
        for _ in range(count):
            self.number += 1
            request = (key_id, self.number)
            self.waiting.append(request)
            self.others.setdefault(key_id, Counter())
            (self.queue.add_first if is_again else self.queue.add)(request, key_id)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        self.queue.remove(request)
        self.forget(request)

    def forget(self, request: tuple[str, int]) -> None:
        self.waiting.remove(request)
        if all(key_id != request[0] for key_id, _ in self.waiting):
            self.others.pop(request[0], None)

    @precondition(lambda self: self.waiting)
    @rule(count=st.integers(1, 20))
    def take(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            request = taken_from(self.queue)
            assert request in self.waiting
            assert request is not None
            self.forget(request)
            key_id = request[0]
            if key_id in self.others:
                self.others[key_id] = Counter()
            for other, granted in self.others.items():
                if other != key_id:
                    granted[key_id] += 1
                    self.check(other, granted)

    def check(self, key_id: str, granted: Counter[str]) -> None:
        """What other keys were granted while *key_id* waited."""
        own = self.turns[key_id]
        equals = [other for other in granted if self.turns[other].is_low == own.is_low]
        for other in equals:
            assert granted[other] <= self.turns[other].per_round
        ahead = sum(granted[other] for other in equals)
        unequal = sum(granted.values()) - ahead
        if own.is_low:
            assert unequal <= (LOW_EVERY - 1) * (ahead + 1)
        else:
            assert unequal <= ahead / (LOW_EVERY - 1) + 1

    @invariant()
    def counts_are_right(self) -> None:
        assert self.queue.size == len(self.waiting)
        assert sorted(self.queue.all()) == sorted(self.waiting)
        for key_id in "abcd":
            assert self.queue.waiting_of(key_id) == sum(k == key_id for k, _ in self.waiting)


def test_in_any_order_of_events_no_key_waits_for_more_than_the_turns_of_the_others() -> None:
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )


def test_what_does_not_wait_cannot_be_removed() -> None:
    queue = queue_of({}, "a")
    for stranger in (("a", 9), ("b", 0)):
        with pytest.raises(KeyError):
            queue.remove(stranger)

    assert queue.size == 1
