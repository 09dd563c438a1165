"""The memory need that `check` computes, compared with what the real llama-server reports."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.schema import EngineSettings, UpstreamSettings
from llama_gguf.engines.command import engine_argv, extra_args
from llama_gguf.engines.locate import Engine, devices_of, flags_of, locate
from llama_gguf.models.engine_options import options
from llama_gguf.models.memory import Need, need
from llama_gguf.models.model_file import read_file
from tests.support import tiny_models

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
    argv = engine_argv("", settings, upstream=UpstreamSettings(), model_path=str(model), alias="m")
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


def test_the_engines_flags_are_read(engine: Engine) -> None:
    flags = flags_of(engine, os.environ)

    assert len(flags) > 200
    for flag in ("--ctx-size", "-np", "--cache-ram", "-ctk", "--override-kv", "--model-draft"):
        assert flags[flag], flag
    for flag in ("--kv-unified", "-nkvo", "--metrics", "--no-mmap", "--version", "--mlock"):
        assert not flags[flag], flag


def test_the_engine_reports_its_gpus(engine: Engine) -> None:
    assert devices_of(engine, os.environ) is not None
