from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.scheduling.replay_order import ReplayOrder


class Replays:
    """Requests by number, and those whose turn has come."""

    def __init__(self) -> None:
        self.order = ReplayOrder()
        self.turns: list[int] = []

    def enter(self, request: int, key_id: str = "alice") -> None:
        self.order.enter(request, key_id, lambda: self.turns.append(request))


def test_one_at_a_time_in_the_order_of_their_failures() -> None:
    replays = Replays()
    for request in (1, 2, 3):
        replays.enter(request)
    assert replays.turns == [1]

    replays.order.leave(1)
    assert replays.turns == [1, 2]
    replays.order.leave(1)  # as it does again when it ends
    assert replays.turns == [1, 2]


def test_one_that_leaves_before_its_turn_is_passed_over() -> None:
    replays = Replays()
    for request in (1, 2, 3):
        replays.enter(request)
    replays.order.leave(2)
    replays.order.leave(1)

    assert replays.turns == [1, 3]


@given(events=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_every_request_that_stays_has_its_turn_once(events: list[tuple[bool, int]]) -> None:
    replays = Replays()
    present: list[int] = []
    for arrives, request in events:
        if arrives and request not in present:
            present.append(request)
            replays.turns = [turn for turn in replays.turns if turn != request]
            replays.enter(request)
        elif not arrives:
            replays.order.leave(request)
            present = [other for other in present if other != request]
        assert [turn for turn in replays.turns if turn in present] == present[:1]
    while present:
        assert replays.turns[-1] == present[0]
        replays.order.leave(present.pop(0))
    assert len(replays.order) == 0


def test_a_request_that_fails_again_waits_behind_the_others() -> None:
    replays = Replays()
    for request in (1, 2, 1):
        replays.enter(request)
    assert replays.turns == [1, 2]
    replays.order.leave(2)
    assert replays.turns == [1, 2, 1]
    replays.enter(1)  # there is no other

    assert replays.turns == [1, 2, 1, 1]


def test_requests_of_a_key_that_has_ended_two_engines_come_last() -> None:
    replays = Replays()
    for request, key_id in ((1, "alice"), (2, "alice"), (3, "bob"), (4, "alice"), (5, "bob")):
        replays.enter(request, key_id)
    replays.order.blame("alice")
    for request in (1, 3, 5, 2, 4):
        assert replays.turns[-1] == request
        replays.order.leave(request)

    for request, key_id in ((6, "bob"), (7, "alice"), (8, "bob")):  # that is over
        replays.enter(request, key_id)
    replays.order.leave(6)
    assert replays.turns[-1] == 7
