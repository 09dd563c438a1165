from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llama_gguf.models.model_file import read_model
from perf import start


def test_the_model_of_the_measurement_can_be_served(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(start.MODEL)

    assert read_model(str(path)).facts.architecture == "llama"


def test_memory_is_that_of_the_process() -> None:
    assert 1 << 20 < start.pss_bytes(os.getpid()) < 1 << 32


@pytest.mark.processes
def test_cpu_time_counts_what_a_process_does() -> None:
    def seconds(code: str) -> float:
        return start.cpu_seconds([sys.executable, "-c", code], os.environ)

    assert 0 < seconds("pass") < seconds("sum(range(20_000_000))")
