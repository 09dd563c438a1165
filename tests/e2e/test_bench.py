"""`bench` against the real engine behind the real gateway: it counts the requested tokens."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND, Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SMALL = ("--prompt-tokens", "48", "--output-tokens", "8", "--requests", "4", "--warmup", "0")


def bench(served: Served, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "x.json"
    url = f"http://127.0.0.1:{served.port}"
    environ = {
        **os.environ,
        "DATA_DIR": str(served.data_dir),
        "BACKEND_API_KEY": served.backend_key,
        "LLAMA_API_KEY": served.key,
    }
    subprocess.run(
        [*COMMAND, "bench", url, *SMALL, "--quiet", "--json", str(file), *arguments],
        env=environ,
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
    )
    said: dict[str, Any] = json.loads(file.read_text())
    return said


def test_a_run_through_the_gateway_counts_the_requested_tokens(
    served: Served, tmp_path: Path
) -> None:
    said = bench(served, tmp_path, "--concurrency", "2")

    (level,) = said["levels"]
    assert level["errors"] == {}
    assert level["tokens"]["output"] == 4 * 8
    assert level["tokens"]["prompt"] == pytest.approx(4 * 48, rel=0.15)
    assert level["tokens_counted_by"] == {"usage": 4}
    assert level["engine_ratio"] > 0
    assert said["server"]["slots"] == 1
    assert said["server"]["gateway"]
    assert said["model"]["architecture"] == "llama"


def test_the_overhead_of_the_gateway_can_be_measured(served: Served, tmp_path: Path) -> None:
    backend = f"http://127.0.0.1:{served.port_backend}"

    said = bench(served, tmp_path, "--concurrency", "1", "--overhead", backend)

    (turns,) = said["overhead"]
    assert (turns["blocks"], turns["failed"]) == (4, 0)
    assert turns["added"].keys() == {"ttft_seconds", "tpot_seconds", "latency_seconds"}
