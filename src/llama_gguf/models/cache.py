"""What llama-server keeps of a context in memory, layer by layer, for each architecture.

Most layers keep a key and a value per KV head and token. The exceptions depend on the architecture,
and on values in the header:

- A layer with a sliding window keeps only as many tokens as the window has.
- A recurrent layer keeps one state of fixed size per slot.
- Multi-head latent attention (MLA) keeps one compressed key per token, and no value.
- Some of the last layers use the cache of earlier ones (gemma3n, gemma4), or belong to a
  predictor of further tokens that has no cache here.
- Encoders and diffusion models keep nothing.

The rules were read in llama.cpp, and compared with what llama-server logs for a small model of
each architecture: tests/e2e/test_memory.py. An architecture without a rule here has an estimate by
the rule of most models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from llama_gguf.models.gguf_values import GgufValue, per_layer, whole
from llama_gguf.values import Value

MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS


class Layer(NamedTuple):
    """What one layer keeps."""

    key: int = 0
    """Elements per token, of the type that ``--cache-type-k`` chooses."""
    value: int = 0
    window: int = 0
    """The number of tokens that it keeps; 0 for the whole context."""
    state: int = 0
    """Elements per slot, of type f32."""


class Cache(Value):
    layers: tuple[Layer, ...]
    is_exact: bool
    """False if the architecture is unknown here, so that ``layers`` is an estimate."""


class _Window(NamedTuple):
    """Which layers have a sliding window: of each *period*, all but the last (or the first)."""

    period: int = 0
    """Unless the header has another one; 0 for all layers."""
    full_first: bool = False
    is_listed: bool = False
    """Whether the header has one value per layer instead."""
    tokens: int = 0
    """The size of the window, even if the header has another; 0 if the header has it."""


_WINDOWS: Final[Mapping[str, _Window]] = {
    "afmoe": _Window(4),
    "cohere2": _Window(4),
    "cohere2moe": _Window(full_first=True),
    "exaone-moe": _Window(4),
    "exaone4": _Window(4),
    "gemma2": _Window(2),
    "gemma3": _Window(6),
    "gemma3n": _Window(5),
    "gemma4": _Window(is_listed=True),
    "gpt-oss": _Window(2),
    "lfm2": _Window(),
    "llama4": _Window(4, tokens=8192),
    "mellum": _Window(),
    "mimo2": _Window(is_listed=True),
    "olmo2": _Window(4),
    "plamo3": _Window(8),
    "smallthinker": _Window(4, full_first=True, tokens=4096),
    "step35": _Window(is_listed=True),
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENCODERS: Final = _names(
    "bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 modern-bert neo-bert nomic-bert"
    " nomic-bert-moe"
)
DIFFUSION: Final = _names("diffusion-gemma dream llada llada-moe rnd1")
_RECURRENT: Final = _names("arwkv7 mamba mamba2 rwkv6 rwkv6qwen2 rwkv7")
_BY_HEADS: Final = _names(
    "granitehybrid jamba kimi-linear lfm2 lfm2moe nemotron_h nemotron_h_moe plamo2"
)
"""Their recurrent layers are those without KV heads."""
_BY_INTERVAL: Final = frozenset(("qwen35", "qwen35moe", "qwen3next"))
_BOTH: Final = frozenset(("falcon-h1",))
"""Each layer has attention and a state."""
_PREDICTORS: Final = frozenset(("hy_v3", "qwen35", "qwen35moe", "step35"))
"""Their layers that predict further tokens have no cache here."""
_WITHOUT_GROUPS: Final = frozenset(("jamba", "mamba", "plamo2"))
_FULL_INTERVAL: Final = 4
_GEMMA3N_OWN_LAYERS: Final = 20
_EXAONE4_WITH_WINDOWS: Final = 64
_PLAIN: Final = _names(
    "arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell"
    " cogvlm command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 dots1 ernie4_5"
    " ernie4_5-moe exaone falcon gemma glm-dsa glm4 glm4moe gpt2 gptneox granite granitemoe"
    " grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl internlm2 jais jais2 llama llama-"
    " embed maincoder minicpm minicpm3 minimax-m2 mistral3 mistral4 mpt nemotron olmo olmoe"
    " openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plm qwen qwen2 qwen2moe"
    " qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe refact seed_oss smollm3 stablelm starcoder"
    " starcoder2 t5 t5encoder talkie xverse"
)
"""Compared with the engine too; all of their layers are of the most frequent kind."""
_KNOWN: Final = (
    _PLAIN
    | _WINDOWS.keys()
    | ENCODERS
    | DIFFUSION
    | _RECURRENT
    | _BY_HEADS
    | _BY_INTERVAL
    | _BOTH
    | _PREDICTORS
)


class _Header:
    """The values of one architecture, by name."""

    def __init__(self, architecture: str, values: Mapping[str, GgufValue]) -> None:
        self.architecture = architecture
        self._values = values
        self.layers = self.whole("block_count") or 0

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self._values

    def whole(self, name: str) -> int | None:
        return whole(self._values, f"{self.architecture}.{name}")

    def number(self, name: str) -> int:
        return self.whole(name) or 0

    def each(self, name: str) -> Sequence[int] | None:
        return per_layer(self._values, f"{self.architecture}.{name}", self.layers)


def cache_of(architecture: str, values: Mapping[str, GgufValue]) -> Cache | None:
    """The layers of a model; None if its header lacks something that is needed.

    Args:
        architecture: ``general.architecture``.
        values: the metadata.
    """
    header = _Header(architecture, values)
    if not 0 < header.layers <= MAX_LAYERS:
        return None
    is_exact = architecture in _KNOWN
    if architecture in ENCODERS or architecture in DIFFUSION:
        return Cache((Layer(),) * header.layers, is_exact)
    state = _state(header)
    if architecture in _RECURRENT:
        return Cache((Layer(state=state),) * header.layers, is_exact) if state else None
    attention = _attention(header)
    if attention is None:
        return None
    recurrent = _recurrent(header)
    cached = _cached_layers(header)
    return Cache(
        tuple(
            _layer(architecture, layer, number=i, is_recurrent=i in recurrent, state=state)
            if i < cached
            else Layer()
            for i, layer in enumerate(attention)
        ),
        is_exact,
    )


def widest_of(architecture: str, values: Mapping[str, GgufValue]) -> int:
    """Elements per token of the largest intermediate result of a layer, of which two exist.

    It is that of the feed-forward network, of the experts that are used for a token, or of the
    recurrent part; the buffers for computing are reused from layer to layer.
    """
    header = _Header(architecture, values)
    networks = header.each("feed_forward_length") if 0 < header.layers <= MAX_LAYERS else None
    used, width = header.number("expert_used_count"), header.number("embedding_length")
    experts = 2 * header.number("expert_feed_forward_length") + width
    return max(2 * max(networks or (0,)), used * experts, 3 * header.number("ssm.inner_size"))


def _layer(
    architecture: str, layer: Layer, *, number: int, is_recurrent: bool, state: int
) -> Layer:
    if architecture in _BOTH:
        return Layer(layer.key, layer.value, layer.window, state)
    return Layer(state=state) if is_recurrent else layer


def _attention(header: _Header) -> list[Layer] | None:
    """Each layer as if it had attention; None if the header does not give the sizes."""
    heads = header.each("attention.head_count")
    kv_heads = header.each("attention.head_count_kv") or heads
    width = header.whole("embedding_length")
    if kv_heads is None:
        return None
    per_head = width // heads[0] if width and heads and heads[0] else None
    key = header.whole("attention.key_length") or per_head
    value = header.whole("attention.value_length") or per_head
    if key is None or value is None:
        return None
    window = _WINDOWS.get(header.architecture, _Window())
    windows = _windows(header)
    tokens = window.tokens or header.number("attention.sliding_window")
    short_key = header.whole("attention.key_length_swa") or key
    short_value = header.whole("attention.value_length_swa") or value
    # MLA: the value is a part of the key.
    has_value = not (
        header.has("attention.key_length_mla") and header.has("attention.value_length_mla")
    )
    extra = header.number("attention.indexer.key_length") if _has_indexer(header) else 0
    return [
        Layer(
            key=count * (short_key if i in windows else key) + extra,
            value=count * (short_value if i in windows else value) if has_value else 0,
            window=tokens if i in windows else 0,
        )
        for i, count in enumerate(kv_heads[: header.layers])
    ]


def _has_indexer(header: _Header) -> bool:
    return header.architecture == "deepseek32"


def _windows(header: _Header) -> frozenset[int]:
    """The layers with a sliding window."""
    window = _WINDOWS.get(header.architecture)
    tokens = header.whole("attention.sliding_window")
    if window is None or not (tokens or (window.tokens and tokens is None)):
        return frozenset()
    if header.architecture == "exaone4" and header.layers != _EXAONE4_WITH_WINDOWS:
        return frozenset()
    period = header.whole("attention.sliding_window_pattern")
    if window.is_listed or (period is None and header.has("attention.sliding_window_pattern")):
        pattern = header.each("attention.sliding_window_pattern") or ()
        return frozenset(i for i, is_limited in enumerate(pattern) if is_limited)
    period = window.period if period is None else period
    full = 0 if window.full_first else period - 1
    return frozenset(i for i in range(header.layers) if period < 1 or i % period != full)


def _recurrent(header: _Header) -> frozenset[int]:
    """The layers with a state instead of attention."""
    layers = range(header.layers)
    if header.architecture in _BY_HEADS:
        kv_heads = header.each("attention.head_count_kv") or ()
        widths = header.each("feed_forward_length")
        if header.architecture.startswith("nemotron") and widths is not None:
            # Its layers are attention, a state or a feed-forward network.
            return frozenset(i for i, n in enumerate(kv_heads) if not n and not widths[i])
        return frozenset(i for i, n in enumerate(kv_heads) if not n)
    if header.architecture in _BY_INTERVAL:
        chosen = header.each("attention.recurrent_layers")
        if chosen is not None:
            return frozenset(i for i in layers if chosen[i])
        interval = header.whole("full_attention_interval") or _FULL_INTERVAL
        return frozenset(i for i in layers if (i + 1) % interval)
    return frozenset()


def _cached_layers(header: _Header) -> int:
    """The number of layers, from the first, that do not use the cache of others."""
    if header.architecture == "gemma3n":
        return _GEMMA3N_OWN_LAYERS
    if header.architecture == "gemma4":
        return header.layers - header.number("attention.shared_kv_layers")
    if header.architecture in _PREDICTORS:
        return header.layers - header.number("nextn_predict_layers")
    return header.layers


def _state(header: _Header) -> int:
    """Elements of the state of one recurrent layer; 0 if there is none."""
    width = header.number("embedding_length")
    heads = (header.each("attention.head_count") or (0,))[0]
    kernel = max(header.number("ssm.conv_kernel") - 1, 0)
    if wkv := header.number("wkv.head_size"):
        shifts = header.whole("token_shift_count")
        return (2 if shifts is None else shifts) * width + width * wkv
    if window := header.number("shortconv.l_cache"):
        return width * (window - 1)
    if size := header.number("kda.head_dim"):
        return 3 * kernel * heads * size + size * size * heads
    inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
    groups = header.number("ssm.group_count")
    if header.architecture in _WITHOUT_GROUPS:
        groups = 0
    return kernel * (inner + 2 * groups * state) + state * inner
