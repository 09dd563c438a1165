from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from llama_gguf.models.engine_options import ALL, AUTO, Options
from llama_gguf.models.gguf import ModelFacts, Tensor
from llama_gguf.models.memory import Need
from llama_gguf.models.placement import GPU_RESERVE_BYTES, Gpu, Placed, chosen_gpus, place
from llama_gguf.values import replace
from tests.models.test_memory import facts_of

# 30 layers of 100 bytes, 40 of them experts, embeddings of 50 bytes and an output tensor of 60
# bytes; each layer has 10 bytes of cache.
LAYERS = 30
TENSORS = (
    Tensor("token_embd.weight", 50),
    Tensor("output.weight", 60),
    *(
        tensor
        for i in range(LAYERS)
        for tensor in (
            Tensor(f"blk.{i}.attn_q.weight", 60),
            Tensor(f"blk.{i}.ffn_up_exps.weight", 40),
        )
    ),
)
NEED = Need(
    model=3110,
    cells=30,
    layers=(10,) * LAYERS,
    state=0,
    windows=0,
    compute=7,
    is_exact=True,
)
A, B = Gpu("CUDA0", 1000), Gpu("CUDA1", 1000)


def facts(tensors: Sequence[Tensor] = TENSORS) -> ModelFacts:
    return replace(facts_of(), layers=LAYERS, tensors=tuple(tensors))


def placed(*gpus: Gpu, tensors: Sequence[Tensor] = TENSORS, **chosen: Any) -> Placed:
    options = Options(**{"ctx": 1, "parallel": 1, "ngl": 99} | chosen)
    return place(NEED, facts(tensors), options, gpus)


@pytest.mark.parametrize(
    ("ngl", "more", "gpu", "ram"),
    [
        (99, {}, (3060, 300), (50, 0)),
        (AUTO, {}, (3060, 300), (50, 0)),
        (31, {}, (3060, 300), (50, 0)),
        (10, {}, (960, 90), (2150, 210)),
        (1, {}, (60, 0), (3050, 300)),
        (99, {"kv_offload": False}, (3060, 0), (50, 300)),
        (99, {"cpu_moe_layers": ALL}, (1860, 300), (1250, 0)),
        (99, {"cpu_moe_layers": 10}, (2660, 300), (450, 0)),
        (99, {"overrides": (("attn_q", "CPU"),)}, (1260, 300), (1850, 0)),
        (99, {"overrides": ((r"blk\.[0-4]\.", "CPU"),)}, (2560, 300), (550, 0)),
    ],
)
def test_layers_are_on_the_gpu_with_their_part_of_the_cache(
    ngl: int, more: dict[str, Any], gpu: tuple[int, int], ram: tuple[int, int]
) -> None:
    found = placed(A, ngl=ngl, **more)

    assert (found.gpus[0].weights, found.gpus[0].cache) == gpu
    assert found.gpus[0].compute == 7 + GPU_RESERVE_BYTES
    assert (found.ram.weights, found.ram.cache) == ram


@pytest.mark.parametrize(("gpus", "ngl"), [((), 99), ((A,), 0)])
def test_without_a_gpu_everything_is_in_ram(gpus: tuple[Gpu, ...], ngl: int) -> None:
    found = placed(*gpus, ngl=ngl)

    assert found.gpus == ()
    assert found.ram.total == NEED.total == 3417


def test_tied_embeddings_are_in_ram_and_on_the_gpu() -> None:
    found = placed(A, tensors=[t for t in TENSORS if t.name != "output.weight"])

    assert found.ram.weights == 50
    assert found.gpus[0].weights == 3000 + 50


def test_several_gpus_have_layers_in_proportion_to_their_free_memory() -> None:
    found = placed(A, Gpu("CUDA1", 3000))

    # 31 units, of which the first quarter, rounded up, is on the first GPU.
    assert [part.weights for part in found.gpus] == [800, 2200 + 60]
    assert [part.cache for part in found.gpus] == [80, 220]


def test_a_tensor_split_has_precedence_over_free_memory() -> None:
    found = placed(A, Gpu("CUDA1", 3000), tensor_split=(3.0, 1.0))

    assert [part.weights for part in found.gpus] == [2400, 600 + 60]


def test_a_missing_share_is_none() -> None:
    assert placed(A, B, tensor_split=(1.0,)).gpus[1].total == 0


def test_an_override_may_name_a_gpu() -> None:
    found = placed(A, B, tensor_split=(1.0,), overrides=(("exps", "CUDA1"),))

    assert [part.weights for part in found.gpus] == [1800 + 60, 1200]


def test_a_pattern_that_python_does_not_know_changes_nothing() -> None:
    assert placed(A, overrides=(("[", "CPU"),)) == placed(A)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({}, ["CUDA0", "CUDA1"]),
        ({"devices": ()}, []),
        ({"devices": ("CUDA1", "CUDA0")}, ["CUDA1", "CUDA0"]),
        ({"devices": ("CUDA1",)}, ["CUDA1"]),
        ({"split_mode": "none", "main_gpu": 1}, ["CUDA1"]),
    ],
)
def test_flags_choose_the_gpus(chosen: dict[str, Any], names: list[str]) -> None:
    options = Options(ctx=1, parallel=1, ngl=99, **chosen)

    assert [gpu.name for gpu in chosen_gpus([A, B], options)] == names


def test_rpc_servers_have_the_first_layers_although_they_are_listed_last() -> None:
    peer = Gpu("RPC0", 1000, "10.0.0.2:50052")
    options = Options(ctx=1, parallel=1, ngl=99)

    assert chosen_gpus((A, B, peer), options) == (peer, A, B)
    chosen = replace(options, devices=("CUDA0", "RPC0"))
    assert chosen_gpus((A, B, peer), chosen) == (A, peer)


def test_only_a_division_by_layers_is_exact() -> None:
    assert placed(A, B).is_exact
    assert not placed(A, B, split_mode="row").is_exact
    assert not placed(A, ngl=AUTO).is_exact
