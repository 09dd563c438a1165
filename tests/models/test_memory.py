from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest

from llama_gguf.models.engine_options import Options
from llama_gguf.models.gguf import ModelFacts, read_facts
from llama_gguf.models.memory import Need, need, type_mistakes
from llama_gguf.values import replace
from tests.support.gguf_files import ARRAY, U32, Typed, gguf

MIB = 1 << 20
# SmolLM2-135M; llama-server's log has 360.00 MiB for 16384 cells.
SMOLLM2 = {
    "general.architecture": "llama",
    "llama.context_length": 8192,
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}


def facts_of(metadata: Mapping[str, object] = SMOLLM2) -> ModelFacts:
    content = gguf(metadata)
    return read_facts(io.BytesIO(content).read, len(content))


def wanted(facts: ModelFacts | None = None, **chosen: Any) -> Need:
    found = need(
        facts or facts_of(), Options(**({"ctx": 16384, "parallel": 0, "ngl": 99} | chosen))
    )
    assert found is not None
    return found


# The numbers are from llama-server's log.
@pytest.mark.parametrize(
    ("chosen", "cells", "kv_mib"),
    [
        ({"ctx": 16384}, 16384, 360.0),
        ({"ctx": 16384, "parallel": 1}, 16384, 360.0),
        ({"ctx": 16384, "parallel": 4}, 4 * 4096, 360.0),
        ({"ctx": 16384, "parallel": 4, "unified": True}, 16384, 360.0),
        ({"ctx": 0}, 8192, 180.0),
        ({"ctx": 0, "parallel": 4}, 4 * 2048, 180.0),
        ({"ctx": 2048, "parallel": 8}, 8 * 256, 45.0),
        ({"ctx": 1000, "parallel": 3}, 3 * 512, 33.75),
        ({"type_k": "q8_0", "type_v": "q8_0"}, 16384, 191.25),
    ],
)
def test_the_size_of_the_kv_cache_is_that_of_the_engine(
    chosen: dict[str, Any], cells: int, kv_mib: float
) -> None:
    found = wanted(**chosen)

    assert found.cells == cells
    assert found.cache == kv_mib * MIB


@pytest.mark.parametrize(
    ("chosen", "compute_mib"),
    [
        ({"ctx": 16384}, 29.51),
        ({"ctx": 16384, "parallel": 4}, 17.51),
        ({"ctx": 4096, "ubatch": 1024}, 35.02),
        ({"ctx": 4096, "ubatch": 128}, 4.38),
        ({"ctx": 4096, "flash_attn": "off"}, 86.38),
    ],
)
def test_the_size_of_compute_buffers_is_close_to_that_of_the_engine(
    chosen: dict[str, Any], compute_mib: float
) -> None:
    assert wanted(**chosen).compute == pytest.approx(compute_mib * MIB, rel=0.08)


def test_kv_heads_may_differ_per_layer() -> None:
    heads = Typed(ARRAY, (U32, [3] * 10 + [0] * 20))

    found = wanted(facts_of(SMOLLM2 | {"llama.attention.head_count_kv": heads}))

    assert found.cache == 120 * MIB
    assert found.layers[9] == 12 * MIB
    assert found.layers[10] == 0


def test_key_and_value_lengths_in_the_header_are_used() -> None:
    lengths = {"llama.attention.key_length": 192, "llama.attention.value_length": 64}

    assert wanted(facts_of(SMOLLM2 | lengths)).cache == 2 * 360 * MIB


# From llama-server's log: a layer with a window of 128 has 768 cells for one slot.
@pytest.mark.parametrize(
    ("chosen", "windows"),
    [
        ({"parallel": 1}, 768),
        ({"parallel": 0}, 1024),
        ({"parallel": 4}, 4 * 768),
        ({"parallel": 4, "unified": True}, 1024),
        ({"parallel": 1, "ubatch": 1024}, 1280),
        ({"parallel": 1, "ubatch": 1024, "batch": 256}, 512),
        ({"parallel": 1, "ctx": 512}, 512),
        ({"parallel": 1, "swa_full": True}, 16384),
    ],
)
def test_a_sliding_window_bounds_what_a_layer_keeps(chosen: dict[str, Any], windows: int) -> None:
    gemma = {k.replace("llama", "gemma2"): v for k, v in SMOLLM2.items()}
    gemma |= {"general.architecture": "gemma2", "gemma2.attention.sliding_window": 128}

    found = wanted(facts_of(gemma), **chosen)

    assert found.windows == windows
    assert found.cache == 15 * 768 * (found.cells + windows)


def test_a_state_is_kept_once_per_slot_and_has_its_own_type() -> None:
    rwkv = {
        "general.architecture": "rwkv6",
        "rwkv6.context_length": 8192,
        "rwkv6.block_count": 2,
        "rwkv6.embedding_length": 64,
        "rwkv6.wkv.head_size": 16,
    }

    found = wanted(facts_of(rwkv), ctx=0, type_k="q8_0")

    assert found.state == found.cache == 2 * 4 * 4 * (2 * 64 + 64 * 16)
    assert wanted(facts_of(rwkv), ctx=0, parallel=1).cache * 4 == found.cache


def test_the_estimate_for_an_unknown_architecture_is_called_one() -> None:
    unknown = {k.replace("llama", "newest"): v for k, v in SMOLLM2.items()}

    found = wanted(facts_of(unknown | {"general.architecture": "newest"}))

    assert not found.is_exact
    assert found.cache == 360 * MIB
    assert wanted().is_exact


@pytest.mark.parametrize("name", ["llama.block_count", "llama.attention.head_count"])
def test_an_incomplete_header_gives_no_estimate(name: str) -> None:
    metadata = {k: v for k, v in SMOLLM2.items() if k != name}

    assert need(facts_of(metadata), Options(ctx=1, parallel=0, ngl=0)) is None


# Types of the cache -------------------------------------------------------------------------------


def mistakes(facts: ModelFacts, **chosen: Any) -> list[str]:
    return list(type_mistakes(facts, Options(ctx=512, parallel=1, ngl=0, **chosen)))


def test_a_type_whose_blocks_do_not_divide_a_head_is_a_mistake() -> None:
    facts = replace(facts_of(), key_length=80, value_length=96)

    assert mistakes(facts, type_k="q8_0", type_v="q4_0") == [
        "--cache-type-k q8_0 stores blocks of 32 values, but a head of this model has 80: "
        "use f16 or bf16"
    ]
    assert not mistakes(facts, type_k="bf16", type_v="f32")


def test_a_quantised_value_cache_without_flash_attention_is_a_mistake() -> None:
    assert mistakes(facts_of(), type_v="q8_0", flash_attn="off") == [
        "--cache-type-v q8_0 needs flash attention: remove --flash-attn off, or use f16"
    ]
    assert not mistakes(facts_of(), type_k="q8_0", flash_attn="off")
    assert not mistakes(facts_of(), type_v="q8_0")
