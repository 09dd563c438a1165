from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import pytest

from llama_gguf.config.schema import EngineSettings
from llama_gguf.models.gguf import ModelFacts, read_facts
from llama_gguf.models.memory import GPU_RESERVE_BYTES, Need, Options, need, options, place
from tests.support.gguf_files import ARRAY, U32, Typed, gguf

MIB = 1 << 20
# SmolLM2-135M; llama-server's log has 360.00 MiB for 16384 cells.
SMOLLM2 = {
    "general.architecture": "llama",
    "llama.context_length": 8192,
    "llama.block_count": 30,
    "llama.embedding_length": 576,
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
    assert found.kv == kv_mib * MIB


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
    assert wanted(**chosen).compute == pytest.approx(compute_mib * MIB, rel=0.04)


def test_the_tokens_of_a_request_are_limited_by_its_slot_and_by_the_model() -> None:
    assert wanted(ctx=16384).slot_tokens == 8192
    assert wanted(ctx=16384, parallel=4).slot_tokens == 4096
    assert (wanted().slots, wanted(parallel=2).slots) == (4, 2)


def test_kv_heads_per_layer_are_summed_and_make_the_estimate_a_bound() -> None:
    heads = Typed(ARRAY, (U32, [3] * 10 + [0] * 20))

    found = wanted(facts_of(SMOLLM2 | {"llama.attention.head_count_kv": heads}))

    assert found.kv == 120 * MIB
    assert found.is_bound
    assert not wanted().is_bound


def test_a_sliding_window_makes_the_estimate_a_bound() -> None:
    assert wanted(facts_of(SMOLLM2 | {"llama.attention.sliding_window": 1024})).is_bound


def test_key_and_value_lengths_in_the_header_are_used() -> None:
    lengths = {"llama.attention.key_length": 192, "llama.attention.value_length": 64}

    assert wanted(facts_of(SMOLLM2 | lengths)).kv == 2 * 360 * MIB


@pytest.mark.parametrize("name", ["llama.block_count", "llama.attention.head_count"])
def test_an_incomplete_header_gives_no_estimate(name: str) -> None:
    metadata = {k: v for k, v in SMOLLM2.items() if k != name}

    assert need(facts_of(metadata), Options(ctx=1, parallel=0, ngl=0)) is None


# Options --------------------------------------------------------------------------------------


def options_of(
    words: str = "", environ: Mapping[str, str] | None = None, **settings: Any
) -> Options:
    return options(EngineSettings(**settings), words.split(), environ or {})


def test_without_extra_flags_the_settings_apply() -> None:
    assert options_of(ctx=512, parallel=2, ngl=3) == Options(ctx=512, parallel=2, ngl=3)


def test_the_last_of_repeated_flags_applies() -> None:
    assert options_of("-c 1024 --ctx_size 2048 -ngl all -np 3 -np x", ctx=512) == Options(
        ctx=2048, parallel=3, ngl=9999
    )
    assert options_of("-ctk Q8_0 --cache-type-v q4_0 -kvu -no-kvu -nkvo -fa off -ub 64") == Options(
        ctx=16384,
        parallel=0,
        ngl=99,
        ubatch=64,
        type_k="q8_0",
        type_v="q4_0",
        unified=False,
        kv_offload=False,
        flash_attn="off",
    )


def test_variables_of_llama_cpp_apply_unless_a_flag_overrides_them() -> None:
    environ = {"LLAMA_ARG_N_PARALLEL": "2", "LLAMA_ARG_CACHE_TYPE_K": "q8_0"}

    assert options_of(environ=environ) == Options(ctx=16384, parallel=2, ngl=99, type_k="q8_0")
    assert options_of("-ctk f32", environ=environ, parallel=8).parallel == 8
    assert options_of("-ctk f32", environ=environ).type_k == "f32"
    assert options_of(environ={"LLAMA_ARG_CTX_SIZE": "1"}).ctx == 16384


def test_a_flag_without_its_value_is_ignored() -> None:
    assert options_of("-c") == Options(ctx=16384, parallel=0, ngl=99)


# GPU and RAM ----------------------------------------------------------------------------------

# 30 layers of 100 bytes, embeddings of 50 bytes and an output tensor of 60 bytes.
NEED = Need(
    model=3110, cells=30, cell_bytes=10.0, compute=7, is_bound=False, slots=1, slot_tokens=30
)


@pytest.mark.parametrize(
    ("ngl", "gpus", "more", "gpu", "ram"),
    [
        (99, 0, {}, None, 3417),
        (0, 1, {}, None, 3417),
        (99, 1, {}, 3000 + 60 + 300 + 7, 50),
        (-1, 2, {}, 3000 + 60 + 300 + 7, 50),
        (31, 1, {}, 3000 + 60 + 300 + 7, 50),
        (10, 1, {}, 900 + 60 + 90 + 7, 50 + 2100 + 210),
        (1, 1, {}, 60 + 7, 50 + 3000 + 300),
        (99, 1, {"kv_offload": False}, 3000 + 60 + 7, 50 + 300),
    ],
)
def test_layers_are_on_the_gpu_with_their_part_of_the_cache(
    ngl: int, gpus: int, more: dict[str, Any], gpu: int | None, ram: int
) -> None:
    facts = dataclasses.replace(facts_of(), layers=30, embedding_bytes=50, output_bytes=60)

    found = place(NEED, facts, Options(ctx=1, parallel=1, ngl=ngl, **more), gpus=gpus)

    assert found.ram == ram
    assert found.gpu == (0 if gpu is None else gpu + gpus * GPU_RESERVE_BYTES)


def test_tied_embeddings_are_in_ram_and_on_the_gpu() -> None:
    facts = dataclasses.replace(facts_of(), layers=30, embedding_bytes=110, output_bytes=0)

    found = place(NEED, facts, Options(ctx=1, parallel=1, ngl=99), gpus=1)

    assert found.ram == 110
    assert found.gpu == 3000 + 110 + 300 + 7 + GPU_RESERVE_BYTES
