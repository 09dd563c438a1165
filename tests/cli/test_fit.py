from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from llama_gguf.cli.fit import results
from llama_gguf.cli.results import Level, Result
from llama_gguf.engines.locate import Device
from llama_gguf.engines.machine import Machine
from llama_gguf.models.memory import GPU_RESERVE_BYTES, Options
from tests.models.test_memory import facts_of

GIB = 1 << 30
FACTS = dataclasses.replace(facts_of(), file_bytes=98_362_432)
CHOSEN = Options(ctx=16384, parallel=0, ngl=99)
NEEDED = 98_362_432 + 377_487_360 + 30_932_992


def found(
    chosen: Options = CHOSEN,
    *,
    available: int | None = 64 * GIB,
    devices: Sequence[Device] | None = (),
) -> dict[str, Result]:
    here = Machine("Linux", 2, None, 64 * GIB, available, ())
    return {r.subject: r for r in results(FACTS, chosen, devices=devices, here=here)}


def test_the_required_memory_is_shown_with_its_parts() -> None:
    output = found()

    assert output["memory needed"].text == (
        "506.8 MB: model 98.4 MB + KV cache 377.5 MB (16384 tokens x 90 KV heads"
        " x (64 x 2 + 64 x 2) bytes) + working space about 30.9 MB"
    )
    assert output["context"].text == "4 slots share 16384 tokens; a request may use 8192 of them"
    assert output["RAM"] == Result("RAM", "506.8 MB of 68.7 GB available")
    assert output.keys() == {"context", "memory needed", "RAM"}


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        (1, "1 slot has 16384 tokens; a request may use 8192 of them"),
        (4, "4 slots divide 16384 tokens; a request may use 4096 of them"),
    ],
)
def test_the_context_of_a_request_depends_on_the_slots(parallel: int, text: str) -> None:
    assert found(dataclasses.replace(CHOSEN, parallel=parallel))["context"].text == text


@pytest.mark.parametrize(("available", "level"), [(NEEDED, Level.OK), (NEEDED - 1, Level.WRONG)])
def test_a_model_that_exceeds_ram_is_a_problem(available: int, level: Level) -> None:
    assert found(available=available)["RAM"].level is level


def test_a_context_that_fits_is_suggested() -> None:
    assert "it does not fit. Set CTX to 8192, use" in found(available=NEEDED - 1)["RAM"].text
    assert "No CTX is small enough" in found(available=98_362_432)["RAM"].text


def test_unknown_memory_gives_no_verdict() -> None:
    assert found(available=None).keys() == {"context", "memory needed"}


def test_unknown_gpus_give_no_verdict() -> None:
    assert found(devices=None, available=1).keys() == {"context", "memory needed"}


def test_an_incomplete_header_gives_no_estimate() -> None:
    here = Machine("Linux", 2, None, None, None, ())
    facts = dataclasses.replace(FACTS, kv_heads=None)

    (output,) = results(facts, CHOSEN, devices=[], here=here)

    assert output.level is Level.OK
    assert output.text.startswith("unknown")


def test_a_gpu_holds_the_model_and_needs_some_memory_itself() -> None:
    output = found(devices=[Device("CUDA0 (L4)", 24 * GIB, NEEDED + GPU_RESERVE_BYTES)])

    assert output["VRAM"] == Result("VRAM", "1.0 GB of 1.0 GB free on CUDA0 (L4)")
    assert output["RAM"].text.startswith("0.0 MB of")


def test_a_model_that_exceeds_the_gpus_is_a_problem() -> None:
    free = NEEDED // 2 + GPU_RESERVE_BYTES - 1

    output = found(devices=[Device("CUDA0", GIB, free), Device("CUDA1", GIB, free)])["VRAM"]

    assert output.level is Level.WRONG
    assert "free on 2 GPUs: it does not fit. Set CTX to 8192, lower NGL (now 99)" in output.text


def test_a_prompt_cache_that_may_fill_the_ram_is_reported() -> None:
    output = found(available=NEEDED + (4 << 30))["prompt cache"]

    assert output.level is Level.NOTE
    assert "up to 8.6 GB, but 4.3 GB will be free" in output.text
    assert "--cache-ram 2048'" in output.text


@pytest.mark.parametrize(("mib", "is_told"), [(4096, False), (4097, True), (0, False), (-1, True)])
def test_a_bound_on_the_prompt_cache_is_respected(mib: int, is_told: bool) -> None:
    output = found(dataclasses.replace(CHOSEN, cache_ram_mib=mib), available=NEEDED + (4 << 30))

    assert ("prompt cache" in output) == is_told
