"""The page that shows what fits into which GPU: calculated as `check` does it.

Rule: nothing here is measured, and no file is read. The tensors follow from a model's published
dimensions, the types from the rules of llama.cpp's quantisation (``llama-quant.cpp``), and the
memory from the code of `llama-gguf check`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llama_gguf.config.schema import EngineSettings
from llama_gguf.models import memory
from llama_gguf.models.engine_options import Options, options
from llama_gguf.models.gguf import ModelFacts, read_facts
from llama_gguf.models.gguf_tables import TENSOR_TYPES
from llama_gguf.models.placement import Gpu, place
from tests.support.gguf_files import Tensor, header

_F32, _Q8_0, _Q4_K, _Q5_K, _Q6_K = 0, 8, 12, 13, 14
GB: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a model, as in its published ``config.json``."""

    name: str
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    experts: int = 0
    is_tied: bool = False
    """The output layer uses the embedding of the input."""


_QWEN: Final = (151936, 40960)
_LLAMA: Final = (128256, 131072)
QWEN3_4B: Final = Shape("Qwen3 4B", "qwen3", 36, 2560, 9728, 32, 8, *_QWEN, is_tied=True)
QWEN3_8B: Final = Shape("Qwen3 8B", "qwen3", 36, 4096, 12288, 32, 8, *_QWEN)
QWEN3_14B: Final = Shape("Qwen3 14B", "qwen3", 40, 5120, 17408, 40, 8, *_QWEN)
QWEN3_32B: Final = Shape("Qwen3 32B", "qwen3", 64, 5120, 25600, 64, 8, *_QWEN)
QWEN3_30B: Final = Shape("Qwen3 30B A3B", "qwen3moe", 48, 2048, 768, 32, 4, *_QWEN, experts=128)
LLAMA_8B: Final = Shape("Llama 3.1 8B", "llama", 32, 4096, 14336, 32, 8, *_LLAMA)
LLAMA_70B: Final = Shape("Llama 3.3 70B", "llama", 80, 8192, 28672, 64, 8, *_LLAMA)
HEAD: Final = 128
"""Of all of these."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that fits into *gigabytes* of a GPU."""

    gigabytes: int
    shape: Shape
    quantization: str
    ctx: int
    parallel: int
    extra_args: str = ""


_Q8_CACHE: Final = "--cache-type-k q8_0 --cache-type-v q8_0"
CHOICES: Final = (
    Choice(8, QWEN3_4B, "Q4_K_M", 16384, 2),
    Choice(8, QWEN3_8B, "Q4_K_M", 8192, 1),
    Choice(16, LLAMA_8B, "Q8_0", 32768, 4),
    Choice(16, QWEN3_14B, "Q4_K_M", 32768, 2),
    Choice(24, QWEN3_14B, "Q8_0", 32768, 4),
    Choice(24, QWEN3_30B, "Q4_K_M", 32768, 2),
    Choice(24, QWEN3_32B, "Q4_K_M", 16384, 1, _Q8_CACHE),
    Choice(48, QWEN3_32B, "Q8_0", 32768, 2),
    Choice(48, QWEN3_30B, "Q8_0", 98304, 3),
    Choice(80, LLAMA_70B, "Q4_K_M", 65536, 2),
    Choice(80, QWEN3_32B, "Q8_0", 131072, 4),
)


_INTRODUCTION: Final = """\
# Choosing a model

What fits into a GPU is the sum of the model's weights, of a KV cache for `CTX` tokens, and of
working space. The slots divide `CTX` between the requests that run at once
([behaviour.md](behaviour.md#the-context-of-a-request)). So choose in this order:

1. **The context of one request**: 4,096 tokens for short chats, 8,192 to 16,384 for documents,
   32,768 or more for coding agents ([clients](clients/README.md#the-context-that-they-want)).
2. **How many requests run at once**: `PARALLEL`. Others wait in the queue. `CTX` is the product
   of the two.
3. **The largest model, in Q4_K_M or better, that leaves room for that cache.** If the cache is
   the larger part, use `EXTRA_ARGS='--cache-type-k q8_0 --cache-type-v q8_0'`, which nearly
   halves it, or fewer slots.
4. **Check it**: `llama-gguf check MODEL` calculates all of it for your file, settings and GPUs,
   and suggests a `CTX` if it does not fit. For a model that is not downloaded yet, it cannot:
   fetch it first, with `llama-gguf pull`.

## Examples

All figures are calculated, none is measured: the tensors from the dimensions that the models'
authors publish, their types by the rules of llama.cpp's quantisation, and the rest by the code of
`check`, which was compared with llama-server ([models.md](models.md#memory-requirements)). Files
of other authors differ by a few per cent. "VRAM" is what `check` shows: it includes
half a gigabyte for the driver and leaves out the input embedding, which stays in RAM. GB are 10^9
bytes; a card of 24 GB has 25.8 of them, less what a desktop or other processes use
(`nvidia-smi`).

"""
_END: Final = """

The models are examples for their size, not recommendations: how good a response is depends on the
task. Models with a sliding window (Gemma 3, gpt-oss) or recurrent layers (Qwen3-Next) need less
cache than these, models with experts (A3B) are as large as others but compute fewer weights per
token. With several GPUs, each holds consecutive layers, and the sum counts.

## Without a GPU

The same sums apply to RAM, where weights that are mapped from the file may exceed what is free,
at the cost of speed. In addition, llama-server caches old prompts in RAM, up to 8.6 GB
(`--cache-ram`). `check` compares with the available RAM, and with the limit of a container. Each
token reads all weights that it uses from memory, so a small model, or one with experts, is what a
CPU can serve.
"""


def page() -> str:
    return f"{_INTRODUCTION}{table()}{_END}"


def table() -> str:
    rows = [
        "| GPU | model | type | settings | each request | file, GB | KV cache, GB | VRAM, GB |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(choice) for choice in CHOICES),
    ]
    return "\n".join(rows)


def _row(choice: Choice) -> str:
    found = facts(choice.shape, choice.quantization)
    _, wanted = needed(choice)
    words = f"CTX={choice.ctx} PARALLEL={choice.parallel}"
    if choice.extra_args:
        words += f" EXTRA_ARGS='{choice.extra_args}'"
    tokens = min(choice.ctx // choice.parallel, choice.shape.context)
    return (
        f"| {choice.gigabytes} GB | {choice.shape.name} | {choice.quantization} | `{words}` | "
        f"{tokens:,} tokens | {found.file_bytes / GB:.1f} | {wanted.cache / GB:.1f} | "
        f"{on_gpu(choice) / GB:.1f} |"
    )


def needed(choice: Choice) -> tuple[ModelFacts, memory.Need]:
    found = facts(choice.shape, choice.quantization)
    wanted = memory.need(found, _options(choice))
    assert wanted is not None
    assert wanted.is_exact
    return found, wanted


def on_gpu(choice: Choice) -> int:
    """What `check` shows as VRAM: the reserve for the driver included, the input embedding not."""
    found, wanted = needed(choice)
    placed = place(wanted, found, _options(choice), [Gpu("CUDA0", choice.gigabytes * GB)])
    return placed.gpus[0].total


def _options(choice: Choice) -> Options:
    settings = EngineSettings(ctx=choice.ctx, parallel=choice.parallel)
    return options(settings, choice.extra_args.split(), {})


def facts(shape: Shape, quantization: str) -> ModelFacts:
    """The facts of a file with these tensors."""
    tensors = list(_tensors(shape, quantization))
    name = shape.architecture
    metadata: dict[str, object] = {
        "general.architecture": name,
        f"{name}.context_length": shape.context,
        f"{name}.block_count": shape.layers,
        f"{name}.embedding_length": shape.embedding,
        f"{name}.feed_forward_length": shape.feed_forward,
        f"{name}.attention.head_count": shape.heads,
        f"{name}.attention.head_count_kv": shape.kv_heads,
        f"{name}.attention.key_length": HEAD,
        f"{name}.attention.value_length": HEAD,
        f"{name}.vocab_size": shape.vocabulary,
    }
    if shape.experts:
        metadata[f"{name}.expert_count"] = shape.experts
        metadata[f"{name}.expert_feed_forward_length"] = shape.feed_forward
    raw = header(metadata, tensors)
    return read_facts(io.BytesIO(raw).read, len(raw) + sum(tensor.size for tensor in tensors))


def _tensors(shape: Shape, quantization: str) -> Iterator[Tensor]:
    """A model's tensors, with the types that ``llama-quantize`` gives them.

    In Q4_K_M, the values of attention and the second matrices of feed-forward have more bits in an
    eighth of the layers at each end, and in every third between them; so has the output.
    """
    is_mixed = quantization == "Q4_K_M"
    usual, more = (_Q4_K, _Q6_K) if is_mixed else (_Q8_0, _Q8_0)
    values = _Q5_K if is_mixed and shape.layers == LLAMA_70B.layers else usual
    wide, width = shape.embedding, shape.heads * HEAD
    yield _tensor("token_embd.weight", more if shape.is_tied else usual, wide, shape.vocabulary)
    if not shape.is_tied:
        yield _tensor("output.weight", more, wide, shape.vocabulary)
    yield _tensor("output_norm.weight", _F32, wide)
    experts = (shape.experts,) if shape.experts else ()
    suffix = "_exps" if experts else ""
    for layer in range(shape.layers):
        eighth = shape.layers // 8
        has_more = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
        at = f"blk.{layer}."
        yield _tensor(f"{at}attn_norm.weight", _F32, wide)
        yield _tensor(f"{at}attn_q.weight", usual, wide, width)
        yield _tensor(f"{at}attn_k.weight", usual, wide, shape.kv_heads * HEAD)
        kind = more if has_more else values
        yield _tensor(f"{at}attn_v.weight", kind, wide, shape.kv_heads * HEAD)
        yield _tensor(f"{at}attn_output.weight", usual, width, wide)
        if shape.architecture.startswith("qwen3"):
            yield _tensor(f"{at}attn_q_norm.weight", _F32, HEAD)
            yield _tensor(f"{at}attn_k_norm.weight", _F32, HEAD)
        yield _tensor(f"{at}ffn_norm.weight", _F32, wide)
        if experts:
            yield _tensor(f"{at}ffn_gate_inp.weight", _F32, wide, shape.experts)
        for part in ("gate", "up"):
            name = f"{at}ffn_{part}{suffix}.weight"
            yield _tensor(name, usual, wide, shape.feed_forward, *experts)
        name = f"{at}ffn_down{suffix}.weight"
        yield _tensor(name, more if has_more else usual, shape.feed_forward, wide, *experts)


def _tensor(name: str, kind: int, *dims: int) -> Tensor:
    each = TENSOR_TYPES[kind]
    return Tensor(dims, kind, math.prod(dims) // each.elements * each.size, name)
