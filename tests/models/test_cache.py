from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from llama_gguf.models.cache import Cache, Layer, cache_of
from llama_gguf.models.gguf_values import Array, GgufValue
from llama_gguf.models.model_file import read_file
from tests.support import tiny_models

PLAIN: dict[str, GgufValue | None] = {
    "block_count": 2,
    "embedding_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def cache(architecture: str, **more: GgufValue | None) -> Cache | None:
    values = PLAIN | {name.replace("__", "."): value for name, value in more.items()}
    return cache_of(
        architecture, {f"{architecture}.{k}": v for k, v in values.items() if v is not None}
    )


def shown(found: Cache | None) -> str:
    """Such as "3*64/32@128 1*0/0+99": layers with key, value, window and state."""
    assert found is not None
    return " ".join(
        f"{len(list(same))}*{layer.key}/{layer.value}"
        + (f"@{layer.window}" if layer.window else "")
        + (f"+{layer.state}" if layer.state else "")
        for layer, same in groupby(found.layers)
    )


# tests/e2e/test_memory.py compares the sizes that follow from these with the engine's.
@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("afmoe", "3*64/64@128 1*64/64 2*64/64@128"),
        ("arwkv7", "6*0/0+33280"),
        ("cohere2", "3*64/64@128 1*64/64 2*64/64@128"),
        ("cohere2moe", "1*64/64 2*64/64@128 1*64/64 2*64/64@128"),
        ("deepseek2", "6*96/0"),
        ("deepseek32", "6*160/0"),
        ("dream", "6*0/0"),
        ("exaone-moe", "3*64/64@128 1*64/64 2*64/64@128"),
        ("falcon-h1", "6*128/128+70144"),
        ("gemma-embedding", "6*0/0"),
        ("gemma2", "1*64/64@128 1*64/64 1*64/64@128 1*64/64 1*64/64@128 1*64/64"),
        ("gemma3", "5*64/64@128 1*64/64"),
        (
            "gemma3n",
            "4*64/64@128 1*64/64 4*64/64@128 1*64/64 4*64/64@128 1*64/64 4*64/64@128 1*64/64 2*0/0",
        ),
        ("gemma4", "2*64/64@128 1*128/128 2*64/64@128 1*128/128 2*0/0"),
        ("glm-dsa", "6*96/0"),
        ("glm4moe", "6*64/64"),
        ("gpt-oss", "1*64/64@128 1*64/64 1*64/64@128 1*64/64 1*64/64@128 1*64/64"),
        ("granitehybrid", "2*0/0+70144 1*128/128 2*0/0+70144 1*128/128"),
        ("jamba", "2*0/0+67072 1*128/128 2*0/0+67072 1*128/128"),
        ("kimi-linear", "2*0/0+70144 1*96/0 2*0/0+70144 1*96/0"),
        ("lfm2", "2*0/0+4096 1*64/64 2*0/0+4096 1*64/64"),
        ("lfm2moe", "2*0/0+4096 1*64/64 2*0/0+4096 1*64/64"),
        ("llama", "6*64/64"),
        ("llama4", "3*64/64@8192 1*64/64 3*64/64@8192 1*64/64"),
        ("mamba", "6*0/0+67072"),
        ("mamba2", "6*0/0+70144"),
        ("mellum", "2*64/64@128 1*64/64 2*64/64@128 1*64/64"),
        ("mimo2", "1*64/64 4*64/64@128 1*64/64"),
        ("nemotron_h", "1*0/0+70144 1*128/128 1*0/0 1*0/0+70144 1*128/128 1*0/0"),
        ("nemotron_h_moe", "1*0/0+70144 1*128/128 1*0/0 1*0/0+70144 1*128/128 1*0/0"),
        ("olmo2", "3*64/64@128 1*64/64 2*64/64@128"),
        ("phi3", "6*64/64"),
        ("plamo2", "1*0/0+67072 1*128/128 1*0/0+67072 1*128/128 1*0/0+67072 1*128/128"),
        ("plamo3", "2*64/64@128 1*64/64 2*64/64@128 1*64/64"),
        ("qwen35", "1*0/0+68608 1*128/128 1*0/0+68608 1*128/128 1*0/0+68608 1*128/128"),
        ("qwen35moe", "3*0/0+68608 1*128/128 2*0/0+68608"),
        ("qwen3moe", "6*64/64"),
        ("qwen3next", "3*0/0+68608 1*128/128 2*0/0+68608"),
        ("rwkv6", "6*0/0+33792"),
        ("rwkv6qwen2", "6*0/0+33280"),
        ("rwkv7", "6*0/0+33792"),
        ("smallthinker", "1*64/64 3*64/64@4096 1*64/64 1*64/64@4096"),
    ],
)
def test_each_architecture_keeps_what_the_engine_keeps(
    tmp_path: Path, architecture: str, layers: str
) -> None:
    tiny_models.write(architecture, tmp_path / "m.gguf")

    found = read_file(str(tmp_path / "m.gguf")).cache

    assert shown(found) == layers
    assert found is not None
    assert found.is_exact


def test_an_unknown_architecture_has_an_estimate_by_the_rule_of_most() -> None:
    assert cache("newest") == Cache((Layer(32, 32),) * 2, is_exact=False)


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [
        ("llama", "block_count"),
        ("llama", "attention.head_count"),
        ("llama", "embedding_length"),
        ("rwkv6", "wkv.head_size"),
    ],
)
def test_a_header_without_the_needed_values_has_no_cache(architecture: str, missing: str) -> None:
    assert cache(architecture, **{missing.replace(".", "__"): None}) is None


@pytest.mark.parametrize("layers", [0, -1, 513, 1 << 40])
def test_an_absurd_number_of_layers_is_not_calculated(layers: int) -> None:
    assert cache("llama", block_count=layers) is None


def test_layers_that_predict_further_tokens_have_no_cache() -> None:
    assert shown(cache("hy_v3", nextn_predict_layers=1)) == "1*32/32 1*0/0"
    assert shown(cache("glm4moe", nextn_predict_layers=1)) == "2*32/32"


def test_an_old_file_without_the_lengths_for_mla_keeps_values() -> None:
    lengths: dict[str, GgufValue] = {"attention__key_length": 192, "attention__value_length": 128}

    assert shown(cache("deepseek2", **lengths)) == "2*384/256"


def test_the_recurrent_layers_may_be_listed() -> None:
    listed = Array(2, (0, 1))

    found = cache(
        "qwen35", attention__recurrent_layers=listed, ssm__inner_size=8, ssm__state_size=2
    )

    assert shown(found) == "1*32/32 1*0/0+16"


def test_a_window_of_zero_is_none() -> None:
    assert shown(cache("llama4", attention__sliding_window=0)) == "2*32/32"
    assert shown(cache("gemma3")) == "2*32/32"


def test_exaone4_has_windows_only_in_its_large_version() -> None:
    small = cache("exaone4", attention__sliding_window=128)
    large = cache("exaone4", attention__sliding_window=128, block_count=64)

    assert shown(small) == "2*32/32"
    assert shown(large).startswith("3*32/32@128 1*32/32 3*")


def test_an_array_that_is_too_short_is_not_used() -> None:
    assert shown(cache("llama", attention__head_count_kv=Array(1, (2,)))) == "2*64/64"
