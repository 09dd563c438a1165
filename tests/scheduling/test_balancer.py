from __future__ import annotations

from llama_gguf.scheduling.balancer import Balancer, Slots


def test_a_request_goes_to_the_engine_while_it_has_a_free_slot() -> None:
    slots = Slots("engine", 2)
    balancer = Balancer[str]()
    balancer.add(slots)
    assert balancer.total == 2

    for in_use, chosen in ((0, slots), (1, slots), (2, None), (3, None)):
        slots.in_use = in_use
        balancer.changed(slots)
        assert balancer.choose() is chosen


def test_an_engine_that_is_not_ready_has_no_slots() -> None:
    balancer = Balancer[str]()
    balancer.add(Slots("engine"))

    assert balancer.choose() is None
    assert balancer.total == 0
