from __future__ import annotations

from typing import Final

import pytest

from llama_gguf.memo import MAX_KEY_BYTES, BoundedMemo


class Doubler:
    """Doubles numbers, and records each call."""

    def __init__(self) -> None:
        self.calls: Final[list[int]] = []

    def __call__(self, number: int) -> int:
        self.calls.append(number)
        return 2 * number


def test_a_result_is_computed_once() -> None:
    double = Doubler()
    memo = BoundedMemo(double, max_entries=4)

    assert [memo[3], memo[3], memo[3]] == [6, 6, 6]
    assert double.calls == [3]


def test_ever_new_keys_never_exceed_the_bound() -> None:
    memo = BoundedMemo(Doubler(), max_entries=4)
    for number in range(100):
        assert memo[number] == 2 * number
        assert len(memo) <= 4


def test_a_key_in_use_is_stored_again_after_a_flood_of_others() -> None:
    double = Doubler()
    memo = BoundedMemo(double, max_entries=4)
    for number in range(100):
        memo[number]
    double.calls.clear()

    assert [memo[3], memo[3], memo[3]] == [6, 6, 6]
    assert double.calls == [3]


def test_what_the_function_raises_is_raised_each_time_and_not_stored() -> None:
    def fail(number: int) -> int:
        raise ValueError(f"{number} is wrong")

    memo = BoundedMemo(fail, max_entries=4)
    for _ in range(2):
        with pytest.raises(ValueError, match="3 is wrong"):
            memo[3]
    assert not memo


@pytest.mark.parametrize(
    "key", [b"x" * MAX_KEY_BYTES, "x" * MAX_KEY_BYTES, (b"GET", b"/" * MAX_KEY_BYTES)], ids=type
)
def test_a_long_key_is_computed_and_not_stored(key: bytes | str | tuple[bytes, ...]) -> None:
    memo = BoundedMemo(len, max_entries=4)

    assert memo[key] == len(key)
    assert not memo
