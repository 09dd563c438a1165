"""How many slots llama-server gets, and how much of its context each has.

Slots that share one context can end each other's requests: when the running ones together fill
it, llama-server ends all of them. A divided context prevents that, so it is divided unless
EXTRA_ARGS or a variable of llama-server requests otherwise. Each slot has an equal part, rounded
up to 256 tokens, and no request gets more than the model's trained context. This was measured
with two builds; tests/e2e/test_slots.py compares the numbers with those of the engine.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.values import Value

MAX_SLOTS: Final = 4
"""As many as llama-server would have by itself; PARALLEL can set more."""
SLOT_TOKENS: Final = 4096
"""If there are several, each has at least this number: enough for a chat about a few pages."""
PAD_TOKENS: Final = 256


class Division(Value):
    """What the slots have of the context; tokens are None if its size is not known yet."""

    slots: int
    is_shared: bool
    total_tokens: int | None
    """Of all slots together."""
    request_tokens: int | None
    """The maximum for one request, prompt and response together."""
    alone_tokens: int | None
    """The same with a single slot."""


def slots_for(context: int | None, trained: int | None) -> int:
    """The number of slots, if it is not set.

    1. The size of the context is unknown: one slot, which has all of it.
    2. Otherwise one per ``SLOT_TOKENS``, and at least one. If the model was trained with less than
       that, no request can use as much, so a slot needs no more than the model.

    Args:
        context: tokens of all slots together.
        trained: the context length that the model was trained with.
    """
    if not context:
        return 1  # 1
    needed = min(SLOT_TOKENS, padded(trained or SLOT_TOKENS))
    return min(MAX_SLOTS, max(1, context // needed))  # 2


def divide(context: int | None, trained: int | None, *, slots: int, is_shared: bool) -> Division:
    """Divide *context* as llama-server does.

    Args:
        context: tokens of all slots together, as requested; None if unknown.
        trained: the context length that the model was trained with, which limits a request.
        slots: their number.
        is_shared: whether they share the context.
    """
    if not context:
        return Division(slots, is_shared, None, None, None)
    parts = 1 if is_shared else slots
    tokens, alone = part_tokens(context, parts), part_tokens(context, 1)
    return Division(
        slots,
        is_shared,
        total_tokens=tokens * parts,
        request_tokens=min(tokens, trained or tokens),
        alone_tokens=min(alone, trained or alone),
    )


def part_tokens(context: int, parts: int) -> int:
    """The tokens of each of *parts* equal parts of the context."""
    return padded(padded(context) // parts)


def padded(tokens: int) -> int:
    return -(-tokens // PAD_TOKENS) * PAD_TOKENS
