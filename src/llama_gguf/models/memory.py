"""Estimates the memory that llama-server needs for a model: file, KV cache, working space.

What its flags mean, as measured on the build of the wheel (its own log tells all of this with
``-lv 5``; tests/e2e/test_memory.py holds the sums against that):

- ``--ctx-size`` is the number of tokens of *all* slots together; 0 is what the model was made for.
- ``--parallel`` left to itself makes 4 slots that share them (``--kv-unified``); with a number,
  each slot has its own equal part of them, rounded up to 256.
- A token's place takes, in each layer, a key and a value for each KV head. Models some of whose
  layers look back over a window only, or that are partly recurrent, take less than the sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llama_gguf.config.settings import DEFAULT_SLOTS, Settings
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.gguf_tables import TENSOR_TYPES

PAD_TOKENS: Final = 256
UBATCH: Final = 512
CACHE_RAM_BYTES: Final = 8192 << 20
"""llama-server's default for ``--cache-ram``: old prompts that it keeps in RAM, as they come."""
GPU_RESERVE_BYTES: Final = 512 << 20
"""Taken on each GPU by its driver and by what is not counted here."""

_MASK_BYTES: Final = 2
_WORK_FLOATS: Final = 12
"""Per token of a batch and per unit of embedding; measured on two models of two sizes."""

_TYPES: Final[Mapping[str, float]] = {
    t.name.lower(): t.size / t.elements for t in TENSOR_TYPES.values()
}
# The flags that change a sum, by the field of Options that they set.
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
"""Those that reach llama-server and that no flag of ours beats."""


@dataclass(frozen=True, slots=True)
class Options:
    """What llama-server will be told, as far as memory goes."""

    ctx: int
    parallel: int
    """0 lets it choose."""
    ngl: int
    ubatch: int = UBATCH
    type_k: str = "f16"
    type_v: str = "f16"
    unified: bool | None = None
    """None: if ``parallel`` is left to it."""
    kv_offload: bool = True
    flash_attn: str = "auto"
    cache_ram_mib: int = CACHE_RAM_BYTES >> 20

    @property
    def slots(self) -> int:
        return self.parallel if self.parallel > 0 else DEFAULT_SLOTS

    @property
    def shares_context(self) -> bool:
        return self.parallel <= 0 if self.unified is None else self.unified


def options(settings: Settings, words: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read what of the settings, EXTRA_ARGS and llama.cpp's own variables counts.

    What cannot be read is left out: llama-server says what is wrong with it.

    Args:
        settings: CTX, PARALLEL, NGL.
        words: EXTRA_ARGS, split. The last word on a thing counts.
        environ: the environment that llama-server will get.
    """
    said: list[str] = []
    for name, flag in _VARIABLES.items():
        said += [flag, environ[name]] if name in environ else []
    if settings.parallel:
        said += ["-np", str(settings.parallel)]
    said += words
    found: dict[str, str | int | bool] = {
        "ctx": settings.ctx,
        "parallel": settings.parallel,
        "ngl": settings.ngl,
    }
    for flag, value in zip(said, [*said, ""][1:], strict=True):
        _take(found, flag if flag[:2] != "--" else flag.replace("_", "-"), value)
    return Options(**found)  # type: ignore[arg-type]  # by _take's own hand


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
    """What a model wants, in bytes."""

    model: int
    cells: int
    """Tokens that the KV cache has places for."""
    cell_bytes: float
    compute: int
    is_bound: bool
    """Whether the KV cache will rather be smaller."""
    slots: int
    slot_tokens: int
    """The most that one request may have."""

    @property
    def kv(self) -> int:
        return round(self.cells * self.cell_bytes)

    @property
    def total(self) -> int:
        return self.model + self.kv + self.compute


def need(facts: ModelFacts, chosen: Options) -> Need | None:
    """What *facts* want with the options *chosen*; None if the header does not say enough."""
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
    """Bytes of one value in the KV cache; of an unknown type, those of f16."""
    return _TYPES.get(name, 2.0)


def _padded(tokens: int) -> int:
    return -(-tokens // PAD_TOKENS) * PAD_TOKENS


def _compute(facts: ModelFacts, chosen: Options, tokens: int) -> int:
    """Working space for a batch; without flash attention, with a score for each pair of tokens."""
    per_token = _WORK_FLOATS * 4 * (facts.embedding_length or 0) + _MASK_BYTES * tokens
    if chosen.flash_attn in {"off", "0", "false", "disabled"}:
        per_token += 4 * (facts.head_count or 0) * tokens
    return chosen.ubatch * per_token


def _is_partly_recurrent(facts: ModelFacts) -> bool:
    """Layers without KV heads of their own have a state of fixed size in their place."""
    return facts.head_count_kv is None


@dataclass(frozen=True, slots=True)
class Placed:
    """A need, divided between GPUs and RAM."""

    gpu: int
    ram: int


def place(wanted: Need, facts: ModelFacts, chosen: Options, *, gpus: int) -> Placed:
    """Divide what is *wanted* as NGL says: whole layers, each with its part of the KV cache.

    Args:
        wanted: what ``need`` said.
        facts: of the model.
        chosen: the options.
        gpus: how many GPUs llama-server sees.
    """
    if not gpus or not chosen.ngl:
        return Placed(gpu=0, ram=wanted.total)
    layers = max(facts.layers or 0, 1)
    # The first of NGL is what makes words of the last layer's numbers; what makes numbers of
    # words is always in RAM, and where both are one, it is in both places.
    share = 1.0 if chosen.ngl < 0 else min(chosen.ngl - 1, layers) / layers
    inner = (wanted.model - facts.embedding_bytes - facts.output_bytes) * share
    kv = wanted.kv * share if chosen.kv_offload else 0
    gpu = inner + (facts.output_bytes or facts.embedding_bytes) + kv + wanted.compute
    ram = wanted.model - facts.output_bytes - inner + wanted.kv - kv
    return Placed(gpu=round(gpu) + gpus * GPU_RESERVE_BYTES, ram=round(ram))
