"""The memory need that `check` computes, compared with what the real llama-server reports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.schema import EngineSettings
from llama_gguf.engines.command import engine_argv, extra_args
from llama_gguf.engines.locate import Engine, devices_of, flags_of, locate
from llama_gguf.models.engine_options import options
from llama_gguf.models.memory import Need, need
from llama_gguf.models.model_file import read_file
from llama_gguf.models.placement import Gpu, chosen_gpus, place
from tests.support import tiny_models
from tests.support.rpc import rpc_servers

pytestmark = pytest.mark.e2e

MIB = 1 << 20


@pytest.fixture(scope="module")
def engine() -> Engine:
    return locate("", "", environ=os.environ)


@dataclass
class Reported:
    """What the engine reports before it loads a model, in MiB."""

    cache: float
    state: float
    everything: float


def reported(model: Path, settings: EngineSettings) -> Reported:
    argv = engine_argv("", settings, model_path=str(model), alias="m")
    flags = argv[argv.index("--ctx-size") :]
    output = tiny_models.report(model, *flags)
    total = re.search(r"projected to use ([0-9]+) MiB", output)
    return Reported(
        cache=_sum(r"llama_kv_cache: size = +([0-9.]+) MiB", output),
        state=_sum(r"llama_memory_recurrent: size = +([0-9.]+) MiB", output),
        everything=float(total[1]) if total else 0.0,
    )


def _sum(pattern: str, output: str) -> float:
    return sum(map(float, re.findall(pattern, output)))


def computed(model: Path, settings: EngineSettings) -> Need:
    wanted = need(read_file(str(model)), options(settings, extra_args(settings), os.environ))
    assert wanted is not None
    return wanted


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"ctx": 0},
        {"ctx": 0, "parallel": 4},
        {"ctx": 1000, "parallel": 3},
        {"ctx": 2048, "parallel": 8, "extra_args": "--kv-unified"},
        {"ctx": 2048, "extra_args": "--no-kv-unified"},
        {"extra_args": "-c 4096 -ctk q8_0 -ctv q8_0 -ub 256"},
        {"ctx": 4096, "extra_args": "-fa off"},
    ],
    ids=str,
)
def test_the_computed_need_matches_the_engines(
    model_file: Path, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(model_file)
    settings = EngineSettings(**chosen)

    found, wanted = reported(model, settings), computed(model, settings)

    assert wanted.cache / MIB == pytest.approx(found.cache, abs=0.01)
    assert wanted.total / MIB == pytest.approx(found.everything, rel=0.03)


@pytest.mark.parametrize(
    "chosen",
    [
        {"ctx": 32768, "parallel": 1},
        {"ctx": 8192, "parallel": 3, "extra_args": "-ub 256 -ctk q8_0"},
        {"ctx": 8192, "parallel": 0},
        {"ctx": 8192, "parallel": 2, "extra_args": "--swa-full --kv-unified"},
    ],
    ids=["one slot", "own contexts", "a shared context", "full windows"],
)
@pytest.mark.parametrize("architecture", tiny_models.METADATA)
def test_the_cache_of_each_architecture_is_that_of_the_engine(
    tmp_path: Path, architecture: str, chosen: dict[str, Any]
) -> None:
    model = tmp_path / "m.gguf"
    tiny_models.write(architecture, model)
    settings = EngineSettings(**chosen)

    found, wanted = reported(model, settings), computed(model, settings)

    # The engine rounds each part of its report to 0.01 MiB.
    assert (wanted.cache - wanted.state) / MIB == pytest.approx(found.cache, abs=0.02)
    assert wanted.state / MIB == pytest.approx(found.state, abs=0.01)
    assert wanted.is_exact


# Several devices ---------------------------------------------------------------------------------


@pytest.fixture
def devices() -> Iterator[list[str]]:
    # New ones for each test: they may die when the engine is killed while it sends them a tensor.
    with rpc_servers(2) as addresses:
        yield addresses


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "-ngl 20 -ts 3,1",
        "-ngl 7 -ts 1,1",
        "-ngl 1 -ts 1,3",
        "-ts 0,1 -nkvo",
        "-dev RPC1",
        "-dev RPC1,RPC0 -ts 1,2",
        "-sm none -mg 1",
        "-ts 1,1 -ot attn=CPU",
        "-dev none",
    ],
)
@pytest.mark.parametrize("architecture", ["", "qwen3moe", "gemma3", "qwen35"])
def test_each_device_has_what_is_calculated_for_it(
    devices: list[str], model_file: Path, tmp_path: Path, architecture: str, flags: str
) -> None:
    model = tmp_path / "m.gguf"
    if architecture:
        tiny_models.write(architecture, model)
    else:
        model.symlink_to(model_file)
    assert_placed(devices, model, flags)


@pytest.mark.parametrize("flags", ["--cpu-moe -ts 1,1", "--n-cpu-moe 2 -ts 1,1"])
def test_experts_may_stay_in_ram(devices: list[str], tmp_path: Path, flags: str) -> None:
    tiny_models.write("qwen3moe", tmp_path / "m.gguf")

    assert_placed(devices, tmp_path / "m.gguf", flags)


def assert_placed(devices: list[str], model: Path, flags: str) -> None:
    settings = EngineSettings(ctx=2048, parallel=1, extra_args=flags)
    chosen = options(settings, extra_args(settings), {})
    facts = read_file(str(model))
    wanted = need(facts, chosen)
    assert wanted is not None
    names = {f"RPC{number}": address for number, address in enumerate(devices)}
    free = 1 << 30  # the same on both, as here
    gpus = chosen_gpus([Gpu(name, free) for name in names], chosen)

    rpc = ["--rpc", ",".join(devices), "--no-warmup", "-fit", "off"]
    output = tiny_models.report(
        model,
        *(*rpc, "-ngl", "99", "-c", "2048", "-np", "1", *flags.split()),
        until=r"sched_reserve: reserv|slot   load_model",
    )

    for gpu, part in zip(gpus, place(wanted, facts, chosen, gpus).gpus, strict=False):
        address = re.escape(names[gpu.name])
        weights = _sum(rf"\[{address}\] model buffer size = +([0-9.]+) MiB", output)
        cache = _sum(rf"\[{address}\] (?:KV|RS) buffer size = +([0-9.]+) MiB", output)
        assert part.weights / MIB == pytest.approx(weights, rel=0.001, abs=0.02), gpu
        assert part.cache / MIB == pytest.approx(cache, abs=0.02), gpu


def test_the_engines_flags_are_read(engine: Engine) -> None:
    flags = flags_of(engine, os.environ)

    assert len(flags) > 200
    for flag in ("--ctx-size", "-np", "--cache-ram", "-ctk", "--override-kv", "--model-draft"):
        assert flags[flag], flag
    for flag in ("--kv-unified", "-nkvo", "--metrics", "--no-mmap", "--version", "--mlock"):
        assert not flags[flag], flag


def test_the_engine_reports_its_gpus(engine: Engine) -> None:
    assert devices_of(engine, os.environ) is not None
