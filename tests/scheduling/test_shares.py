from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.scheduling.shares import is_within_share


@given(limit=st.integers(1, 300), keys=st.integers(1, 9))
def test_keys_that_take_as_much_as_possible_get_equal_shares(limit: int, keys: int) -> None:
    held = [0] * keys
    took = True
    while took:
        took = False
        for key in range(keys):
            if is_within_share(held[key] + 1, free=limit - sum(held) - 1):
                held[key] += 1
                took = True

    assert max(held) - min(held) <= 1
    assert sum(held) < limit  # a part always remains for another key


def test_a_single_key_gets_four_fifths() -> None:
    assert is_within_share(80, free=20)
    assert not is_within_share(81, free=19)
