"""The behaviour of `make` on a machine that lacks a prerequisite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]

# Like Debian's without python3-venv: it creates the directory and the links, then fails.
PYTHON_WITHOUT_ENSUREPIP = f"""#!/bin/sh
if [ "$2" = venv ]; then
    {sys.executable} -m venv --without-pip "$3"
    echo "you need to install the python3-venv package" >&2
    exit 1
fi
exec {sys.executable} "$@"
"""


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", *arguments],
        cwd=folder,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_failed_environment_is_created_by_the_next_run(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    poor = tmp_path / "poor-python"
    poor.write_text(PYTHON_WITHOUT_ENSUREPIP)
    poor.chmod(0o755)

    first = make(tmp_path, ".venv/bin/python", f"PYTHON={poor}")
    second = make(tmp_path, ".venv/bin/python", f"PYTHON={sys.executable}")

    assert first.returncode == 2
    assert "python3-venv" in first.stderr
    assert second.returncode == 0, second.stderr
    assert (tmp_path / ".venv" / "bin" / "pip").exists()
