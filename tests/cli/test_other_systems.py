"""On a system that is not Linux, `serve` names that, and what can work there works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.processes

NO_LINUX: Final = """
import asyncio, os, select, signal, socket

for module in (os, select, signal, socket):
    for name in list(vars(module)):
        if name.startswith(("EPOLL", "epoll", "pidfd_", "sched_", "SO_PEERCRED", "SO_PASSCRED")):
            delattr(module, name)
"""
"""The module ``sitecustomize``: what macOS does not have either is removed."""


def run(folder: Path, *words: str) -> tuple[int, str]:
    """The status of a command without Linux, and its output."""
    (folder / "sitecustomize.py").write_text(NO_LINUX)
    (folder / "llama-server").write_text("#!/bin/sh\n")
    (folder / "llama-server").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "llama_gguf", *words],
        env={
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "PATH": f"{folder}:{os.defpath}",
            "DATA_DIR": str(folder / "data"),
            "COLUMNS": "200",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout


def test_serve_states_in_one_line_what_to_do(tmp_path: Path) -> None:
    status, output = run(tmp_path, "serve", "m.gguf")

    assert status == 1
    assert len(output.splitlines()) == 1
    for words in ("needs Linux", "select.epoll", "Colima", "docker.md", "`llama-gguf gateway`"):
        assert words in output


def test_check_reports_it_among_the_rest(tmp_path: Path) -> None:
    status, output = run(tmp_path, "check")

    assert status == 1
    assert "- system: `llama-gguf serve` needs Linux" in output
    assert "PORT_HEALTH" in output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("keys", "generate", "alice"), "alice"),
        (("keys", "list"), "there is no keys file"),
        (("pull", "--list"), "smollm2"),
        (("status",), "no server runs"),
        (("bench", "http://127.0.0.1:1"), "cannot be reached"),
    ],
)
def test_commands_that_need_no_supervisor_work(
    tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    status, output = run(tmp_path, *words)

    assert text in output
    assert "Traceback" not in output
    assert status in (0, 1, 3)
