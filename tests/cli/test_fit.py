from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.cli.fit import Companion, results
from llama_gguf.engines.devices import Device
from llama_gguf.engines.machine import Machine
from llama_gguf.files.sizes import size_text
from llama_gguf.models.cache import Cache, Layer
from llama_gguf.models.engine_options import AUTO, Options
from llama_gguf.models.gguf import ModelFacts, Tensor
from llama_gguf.models.placement import GPU_RESERVE_BYTES
from llama_gguf.values import replace
from tests.models.test_memory import facts_of

GIB = 1 << 30
WEIGHTS, CACHE, WORK = 98_362_432, 377_487_360, 31_916_032
FACTS = replace(facts_of(), file_bytes=WEIGHTS, tensors=(Tensor("output.weight", WEIGHTS),))
CHOSEN = Options(ctx=16384, parallel=0, ngl=99)
NEEDED = WEIGHTS + CACHE + WORK


def found(
    chosen: Options = CHOSEN,
    *,
    available: int | None = 64 * GIB,
    devices: Sequence[Device] | None = (),
    facts: ModelFacts = FACTS,
    companions: Sequence[Companion] = (),
) -> dict[str, Result]:
    here = Machine("Linux", 2, 2, None, 64 * GIB, available, ())
    return {
        r.subject: r
        for r in results(facts, chosen, devices=devices, here=here, companions=companions)
    }


def test_the_required_memory_is_shown_with_its_parts() -> None:
    output = found()

    assert output["memory needed"].text == (
        "507.8 MB: model 98.4 MB + KV cache 377.5 MB (30 layers x 16384 tokens)"
        " + working space about 31.9 MB"
    )
    assert output["RAM"] == Result("RAM", "507.8 MB of 68.7 GB available")
    assert output.keys() == {"memory needed", "RAM"}


def test_windows_states_and_types_are_shown() -> None:
    layers = (Layer(64, 64), *[Layer(64, 64, window=128)] * 2, Layer(state=1000))
    facts = replace(FACTS, cache=Cache(layers, is_exact=True))

    text = found(replace(CHOSEN, parallel=1, type_k="q8_0"), facts=facts)["memory needed"].text

    assert "(1 layer x 16384 tokens, 2 layers x 768 tokens, of type q8_0 and f16)" in text
    assert " + states 0.0 MB + " in text


def test_the_estimate_for_an_unknown_architecture_is_called_one() -> None:
    facts = replace(FACTS, cache=Cache((Layer(10**9, 0),), is_exact=False))

    output = found(facts=facts, available=GIB)

    assert output["memory needed"].text.startswith("about ")
    assert output["RAM"].level is Level.NOTE


# A model that is mapped from its file can be served with less memory than the model has.
@pytest.mark.parametrize(
    ("available", "more", "level"),
    [
        (NEEDED, {}, Level.OK),
        (NEEDED - 1, {}, Level.NOTE),
        (CACHE, {}, Level.NOTE),
        (CACHE - 1, {}, Level.WRONG),
        (CACHE + WEIGHTS, {"mmap": False}, Level.NOTE),
        (CACHE + WEIGHTS - 1, {"mmap": False}, Level.WRONG),
        (CACHE + WEIGHTS - 1, {"mlock": True}, Level.WRONG),
    ],
)
def test_only_a_model_that_certainly_exceeds_ram_is_a_problem(
    available: int, more: dict[str, Any], level: Level
) -> None:
    assert found(replace(CHOSEN, **more), available=available)["RAM"].level is level


def test_a_context_that_fits_is_suggested() -> None:
    assert "is slow. Set CTX to 8192, use" in found(available=NEEDED - 1)["RAM"].text
    assert "it does not fit. Set CTX to 8192, use" in found(available=CACHE - 1)["RAM"].text
    assert "No CTX is small enough" in found(available=WEIGHTS)["RAM"].text


def test_a_context_left_to_llama_server_is_no_problem_but_may_exceed_the_available_ram() -> None:
    output = found(replace(CHOSEN, fits_ctx=True), available=CACHE - 1)["RAM"]

    assert output.level is Level.NOTE
    assert "uses all RAM of the machine. Set CTX to 8192." in output.text


def test_a_wrong_type_of_the_cache_is_a_problem() -> None:
    facts = replace(FACTS, key_length=80)

    output = found(replace(CHOSEN, type_k="q8_0"), facts=facts)["cache type"]

    assert output.level is Level.WRONG
    assert "a head of this model has 80" in output.text


def test_what_is_loaded_with_the_model_is_added() -> None:
    output = found(companions=[Companion("projector", GIB, on_gpu=True)])

    assert output["memory needed"].text.endswith(" + projector at least 1.1 GB")
    assert output["memory needed"].text.startswith("1.6 GB: ")
    assert output["RAM"].text.startswith("1.6 GB of")


def test_unknown_memory_gives_no_verdict() -> None:
    assert found(available=None).keys() == {"memory needed"}


def test_unknown_gpus_give_no_verdict() -> None:
    assert found(devices=None, available=1).keys() == {"memory needed"}


def test_an_incomplete_header_gives_no_estimate() -> None:
    here = Machine("Linux", 2, 2, None, None, None, ())
    facts = replace(FACTS, cache=None)

    (output,) = results(facts, CHOSEN, devices=[], here=here)

    assert output.level is Level.OK
    assert output.text.startswith("unknown")


GPU_NEEDED = NEEDED + GPU_RESERVE_BYTES


def test_a_gpu_holds_the_model_and_needs_some_memory_itself() -> None:
    output = found(devices=[Device("CUDA0 (L4)", 24 * GIB, GPU_NEEDED)])

    assert output["VRAM"] == Result("VRAM", "1.0 GB of 1.0 GB free on CUDA0")
    assert output["RAM"].text.startswith("0.0 MB of")


@pytest.mark.parametrize(
    ("free", "more", "level"),
    [
        (GPU_NEEDED, {}, Level.OK),
        (GPU_NEEDED - 1, {}, Level.NOTE),
        (WEIGHTS + CACHE, {}, Level.NOTE),
        (WEIGHTS + CACHE - 1, {}, Level.WRONG),
        (WEIGHTS + CACHE - 1, {"ngl": AUTO}, Level.NOTE),
        (WEIGHTS + CACHE - 1, {"ngl": AUTO, "fit": False}, Level.NOTE),
        (WEIGHTS + CACHE - 1, {"fits_ctx": True}, Level.NOTE),
        (WEIGHTS + CACHE - 1, {"split_mode": "row"}, Level.NOTE),
    ],
)
def test_only_a_model_that_certainly_exceeds_a_gpu_is_a_problem(
    free: int, more: dict[str, Any], level: Level
) -> None:
    devices = [Device("CUDA0 (L4)", 24 * GIB, free)]

    assert found(replace(CHOSEN, **more), devices=devices)["VRAM"].level is level


def test_each_of_several_gpus_must_have_enough_memory() -> None:
    devices = [Device("CUDA0 (a)", 4 * GIB, 4 * GIB), Device("CUDA1 (b)", GIB, WEIGHTS)]

    output = found(replace(CHOSEN, tensor_split=(1.0, 1.0)), devices=devices)["VRAM"]

    assert output.level is Level.WRONG
    assert " free on CUDA0, " in output.text
    assert "98.4 MB free on CUDA1: it does not fit. Set CTX to" not in output.text
    assert (
        "98.4 MB free on CUDA1: it does not fit. No CTX is small enough, lower NGL" in output.text
    )


def test_a_projector_is_counted_on_the_first_gpu() -> None:
    projector = [Companion("projector", GIB, on_gpu=True)]

    output = found(devices=[Device("CUDA0 (L4)", GIB, GPU_NEEDED)], companions=projector)

    assert output["VRAM"].level is Level.NOTE
    assert output["RAM"].text.startswith("0.0 MB of")


def test_without_devices_the_model_is_in_ram() -> None:
    output = found(replace(CHOSEN, devices=()), devices=[Device("CUDA0 (L4)", 24 * GIB, GIB)])

    assert "VRAM" not in output
    assert output["RAM"].text.startswith("507.8 MB of")


def test_a_prompt_cache_that_may_fill_the_ram_is_reported() -> None:
    output = found(available=NEEDED + (4 << 30))["prompt cache"]

    assert output.level is Level.NOTE
    assert "up to 8.6 GB, but 4.3 GB will be free" in output.text
    assert "--cache-ram 2048'" in output.text


@pytest.mark.parametrize(("mib", "is_told"), [(4096, False), (4097, True), (0, False), (-1, True)])
def test_a_bound_on_the_prompt_cache_is_respected(mib: int, is_told: bool) -> None:
    output = found(replace(CHOSEN, cache_ram_mib=mib), available=NEEDED + (4 << 30))

    assert ("prompt cache" in output) == is_told


# Replicas -----------------------------------------------------------------------------------------


def with_replicas(
    parts: Sequence[Sequence[Device] | None], chosen: Options = CHOSEN, available: int = 64 * GIB
) -> dict[str, list[Result]]:
    here = Machine("Linux", 2, 2, None, 64 * GIB, available, ())
    devices = [device for part in parts for device in part or ()]
    found: dict[str, list[Result]] = {}
    for result in results(FACTS, chosen, devices=devices, here=here, parts=parts):
        found.setdefault(result.subject, []).append(result)
    return found


def test_replicas_have_the_weights_of_a_mapped_file_in_ram_once() -> None:
    on_cpu = replace(CHOSEN, ngl=0)
    copies = replace(on_cpu, mmap=False)

    (mapped,), (copied,) = (with_replicas([None] * 3, chosen)["RAM"] for chosen in (on_cpu, copies))
    assert mapped.text.startswith(size_text(WEIGHTS + 3 * (CACHE + WORK)))
    assert copied.text.startswith(size_text(3 * NEEDED))
    assert mapped.text.endswith(" available, for 3 replicas together")


def test_with_replicas_a_figure_has_how_many_of_them_it_is_for() -> None:
    first, second = (Device(f"CUDA{n} (card)", 8 * GIB, 8 * GIB) for n in range(2))

    apart, together = (with_replicas(parts) for parts in ([[first], [second]], [[first]] * 2))

    (needed,) = apart["memory needed"]
    assert needed.text.startswith(f"{size_text(NEEDED)} for each replica: model ")
    assert [r.text.endswith(" free on CUDA0") for r in apart["VRAM"]] == [True, False]
    (shared,) = together["VRAM"]
    assert shared.text.endswith(" free on CUDA0, for 2 replicas together")
    assert "replica" not in found()["memory needed"].text


def test_each_gpu_needs_the_memory_of_the_replicas_on_it() -> None:
    first, second = (Device(f"CUDA{n} (card)", GIB, GIB) for n in range(2))
    one = NEEDED + GPU_RESERVE_BYTES

    apart = with_replicas([[first], [second]])
    assert [r.text.split(" of ")[0] for r in apart["VRAM"]] == [size_text(one)] * 2
    assert all(r.level is Level.OK for r in apart["VRAM"])
    (shared,) = with_replicas([[first], [first]])["VRAM"]
    assert shared.text.startswith(size_text(2 * one))
    assert shared.level is not Level.OK
    assert len(apart["RAM"]) == 1
