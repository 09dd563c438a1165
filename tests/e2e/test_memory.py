"""The memory need that `check` computes, compared with what the real llama-server reports."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.command import engine_argv, extra_args
from llama_gguf.engines.locate import Engine, devices_of, flags_of, locate
from llama_gguf.models.memory import need, options
from llama_gguf.models.model_file import read_model
from tests.support.processes import free_port

pytestmark = pytest.mark.e2e

MIB = 1 << 20


@pytest.fixture(scope="module")
def engine() -> Engine:
    return locate("", "", environ=os.environ)


def reported_by(engine: Engine, settings: Settings, model_file: Path) -> tuple[float, float]:
    """MiB of the KV cache, and in total; it reports them before it loads the model."""
    argv = engine_argv(
        engine.path,
        settings.engine,
        upstream=settings.upstream,
        model_path=str(model_file),
        alias="m",
    )
    process = subprocess.Popen(
        [*argv, "-lv", "5"],
        env={**os.environ, **engine.environment_changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    cache = 0.0
    try:
        for line in process.stdout:
            if match := re.search(r"llama_kv_cache: size = +([0-9.]+) MiB", line):
                cache = float(match[1])
            if match := re.search(r"projected to use ([0-9]+) MiB", line):
                return cache, float(match[1])
    finally:
        process.kill()
        process.communicate()
    pytest.fail("it did not say how much it takes")


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"ctx": 0},
        {"ctx": 0, "parallel": 4},
        {"ctx": 1000, "parallel": 3},
        {"ctx": 2048, "parallel": 8, "extra_args": "--kv-unified"},
        {"extra_args": "-c 4096 -ctk q8_0 -ctv q8_0 -ub 256"},
        {"ctx": 4096, "extra_args": "-fa off"},
    ],
    ids=str,
)
def test_the_computed_need_matches_the_engines(
    engine: Engine, model_file: Path, chosen: dict[str, Any]
) -> None:
    settings = Settings.of(port_backend=free_port(), **chosen)
    cache, everything = reported_by(engine, settings, model_file)

    chosen_options = options(settings.engine, extra_args(settings.engine), os.environ)
    wanted = need(read_model(str(model_file)).facts, chosen_options)

    assert wanted is not None
    assert wanted.kv / MIB == pytest.approx(cache, abs=0.01)
    assert wanted.total / MIB == pytest.approx(everything, rel=0.03)


def test_the_engines_flags_are_read(engine: Engine) -> None:
    flags = flags_of(engine, os.environ)

    assert len(flags) > 200
    for flag in ("--ctx-size", "-np", "--cache-ram", "-ctk", "--override-kv", "--model-draft"):
        assert flags[flag], flag
    for flag in ("--kv-unified", "-nkvo", "--metrics", "--no-mmap", "--version", "--mlock"):
        assert not flags[flag], flag


def test_the_engine_reports_its_gpus(engine: Engine) -> None:
    assert devices_of(engine, os.environ) is not None
