from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.models.slots import MAX_SLOTS, Division, divide, slots_for


@pytest.mark.parametrize(
    ("context", "slots"),
    [(256, 1), (1024, 1), (8191, 1), (8192, 2), (12288, 3), (16384, 4), (1 << 20, 4)],
)
def test_there_is_a_slot_per_4096_tokens_and_never_more_than_four(context: int, slots: int) -> None:
    assert slots_for(context, 131_072) == slots_for(context, None) == slots


@pytest.mark.parametrize(
    ("context", "trained", "slots"),
    [(4096, 2048, 2), (2048, 2048, 1), (16384, 512, 4), (512, 8, 2)],
)
def test_a_slot_needs_no_more_than_the_model_can_use(
    context: int, trained: int, slots: int
) -> None:
    assert slots_for(context, trained) == slots


@pytest.mark.parametrize("context", [None, 0])
def test_an_unknown_context_is_not_divided(context: int | None) -> None:
    assert slots_for(context, 8192) == 1
    assert divide(context, 8192, slots=1, is_shared=False) == Division(1, False, None, None, None)


# From /props and the log of llama-server, with a model of the given trained context.
@pytest.mark.parametrize(
    ("context", "slots", "trained", "total", "of_one"),
    [
        (1024, 4, 2048, 1024, 256),
        (1024, 3, 2048, 1536, 512),
        (600, 4, 2048, 1024, 256),
        (257, 2, 2048, 512, 256),
        (1000, 3, 2048, 1536, 512),
        (1281, 5, 2048, 2560, 512),
        (16384, 3, 2048, 16896, 2048),
        (5000, 1, 2048, 5120, 2048),
        (2048, 4, 2048, 2048, 512),
        (8192, 3, 8192, 8448, 2816),
        (16384, 4, 8192, 16384, 4096),
    ],
)
def test_the_parts_are_those_of_the_engine(
    context: int, slots: int, trained: int, total: int, of_one: int
) -> None:
    found = divide(context, trained, slots=slots, is_shared=False)

    assert (found.slots, found.total_tokens, found.request_tokens) == (slots, total, of_one)


def test_a_request_may_use_all_of_a_shared_context_up_to_the_models_limit() -> None:
    assert divide(1024, 2048, slots=4, is_shared=True).request_tokens == 1024
    assert divide(16384, 2048, slots=4, is_shared=True).request_tokens == 2048


def test_what_a_single_slot_would_have_is_known() -> None:
    assert divide(16384, 8192, slots=4, is_shared=False).alone_tokens == 8192
    assert divide(16384, 65536, slots=4, is_shared=False).alone_tokens == 16384


@given(
    context=st.integers(1, 1 << 20),
    trained=st.none() | st.integers(1, 1 << 20),
    slots=st.integers(1, 256),
)
def test_parts_add_up_and_no_request_gets_less_than_its_share(
    context: int, trained: int | None, slots: int
) -> None:
    found = divide(context, trained, slots=slots, is_shared=False)

    assert found.total_tokens is not None
    assert found.request_tokens is not None
    assert context <= found.total_tokens < context + 256 * (slots + 1)
    assert found.request_tokens * slots >= min(context, (trained or context) * slots)


@given(context=st.integers(1, 1 << 20), trained=st.none() | st.integers(1, 1 << 20))
def test_the_chosen_number_leaves_each_request_4096_tokens_if_there_are_as_many(
    context: int, trained: int | None
) -> None:
    slots = slots_for(context, trained)
    found = divide(context, trained, slots=slots, is_shared=False)

    assert 1 <= slots <= MAX_SLOTS
    assert found.request_tokens is not None
    assert found.request_tokens >= min(4096, context, trained or 4096)
