"""Whether a second engine fits beside the first."""

from __future__ import annotations

import pytest

from llama_gguf.engines.devices import Device
from llama_gguf.models.engine_options import Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.model_file import read_model
from llama_gguf.supervisor.room import has_room
from llama_gguf.values import replace
from tests.support.gguf_files import gguf

GIB = 1 << 30
ON_CPU = Options(ctx=512, parallel=1, ngl=0)
ON_GPU = replace(ON_CPU, ngl=99)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    path = tmp_path_factory.mktemp("models") / "m.gguf"
    path.write_bytes(gguf())
    return replace(read_model(str(path)).facts, file_bytes=8 * GIB)


def gpu(free: int) -> list[Device]:
    return [Device("CUDA0 (card)", 24 * GIB, free)]


@pytest.mark.parametrize(
    ("chosen", "has_same_file", "available", "expected"),
    [
        (ON_CPU, True, 1 * GIB, True),
        (ON_CPU, True, 1 << 28, False),
        (ON_CPU, False, 8 * GIB, False),
        (ON_CPU, False, 9 * GIB, True),
        (replace(ON_CPU, mmap=False), True, 8 * GIB, False),
        (replace(ON_CPU, mlock=True), True, 8 * GIB, False),
    ],
)
def test_a_model_file_that_is_mapped_already_needs_no_further_memory(
    facts: ModelFacts,
    chosen: Options,
    has_same_file: bool,
    available: int,
    expected: bool,
) -> None:
    found = has_room(
        facts,
        chosen,
        devices=[],
        memory_available=available,
        has_same_file=has_same_file,
    )

    assert found is expected


def test_the_free_memory_of_the_gpu_decides(facts: ModelFacts) -> None:
    def on(free: int) -> bool:
        return has_room(
            facts,
            ON_GPU,
            devices=gpu(free),
            memory_available=64 * GIB,
            has_same_file=True,
        )

    assert on(8 * GIB)
    assert not on(1 << 28)


@pytest.mark.parametrize(
    ("chosen", "devices", "available"),
    [
        (ON_GPU, None, 64 * GIB),
        (ON_GPU, gpu(8 * GIB), None),
        (replace(ON_GPU, projector="p.gguf"), gpu(8 * GIB), 64 * GIB),
        (replace(ON_GPU, ctx=0), gpu(8 * GIB), 64 * GIB),
    ],
    ids=["devices", "memory", "projector", "context"],
)
def test_what_is_unknown_counts_as_no_room(
    facts: ModelFacts, chosen: Options, devices: list[Device] | None, available: int | None
) -> None:
    unknown = replace(facts, context_length=None)

    assert not has_room(
        unknown, chosen, devices=devices, memory_available=available, has_same_file=True
    )
