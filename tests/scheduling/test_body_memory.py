from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.scheduling.body_memory import BodyMemory


def shared(limit: int) -> BodyMemory:
    return BodyMemory(limit, lambda: True)


def test_2_a_single_body_may_use_all_of_the_memory() -> None:
    memory = shared(100)

    assert memory.take("a", 60)
    assert memory.take("a", 40, own=60)
    assert not memory.take("a", 1, own=100)
    assert memory.used == 100


def test_1_rejected_bytes_are_not_counted() -> None:
    memory = shared(100)
    memory.take("a", 60)

    assert not memory.take("b", 41)
    assert memory.take("b", 40)


def test_3_a_second_body_of_a_key_leaves_a_part_for_other_keys() -> None:
    memory = shared(100)
    memory.take("a", 60)

    assert not memory.take("a", 21)
    assert not memory.has_room("a", 21)
    assert memory.take("a", 20)
    assert memory.take("b", 20)


def test_4_without_other_keys_two_bodies_may_use_all_of_the_memory() -> None:
    memory = BodyMemory(100, lambda: False)
    memory.take("a", 60)

    assert memory.take("a", 40)


def test_released_bytes_are_available_again() -> None:
    memory = shared(100)
    memory.take("a", 100)
    memory.give_back("a", 100)

    assert memory.has_room("b", 100)
    assert memory.has_room("a", 100)


@given(
    bodies=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=60),
    size=st.integers(1, 100),
)
def test_many_bodies_of_one_key_leave_a_fifth_for_other_keys(
    bodies: list[tuple[str, int]], size: int
) -> None:
    memory = shared(1000)
    held = [(key_id, size) for key_id, size in bodies if memory.take(key_id, size)]
    while memory.take("d", size):
        held.append(("d", size))

    assert sum(size for key_id, size in held if key_id == "d") <= 800
    rest = 1000 - memory.used
    assert memory.take("e", rest)
    memory.give_back("e", rest)
    for key_id, each in held:
        if each:
            memory.give_back(key_id, each)
    assert memory.used == 0
    assert memory.has_room("d", 1000)
