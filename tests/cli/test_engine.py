"""`llama-gguf-engine` as a program; that it serves is in tests/e2e/test_wheel_server.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "llama_gguf.cli.engine", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--help", "-c, --ctx-size N\n"),
        ("--version", "version: "),
        ("--list-devices", "Available devices:\n"),
    ],
)
def test_it_reports_what_llama_server_reports(flag: str, text: str) -> None:
    done = run(flag)

    assert done.returncode == 0
    assert text in done.stdout


def test_a_flag_that_it_lacks_ends_it_with_one_line() -> None:
    done = run("--rpc", "host:1")

    assert done.returncode == 1
    assert done.stderr.startswith("error: --rpc is not supported")
    assert done.stderr.count("\n") == 1


def test_a_model_that_cannot_be_loaded_ends_it_after_the_engines_reason(tmp_path: Path) -> None:
    done = run("--model", str(tmp_path / "none.gguf"))

    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
