"""What `make` does for somebody whose machine lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# As Debian's without python3-venv: folder and links are made, then it fails.
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


def test_an_environment_that_could_not_be_made_is_made_at_the_next_try(tmp_path: Path) -> None:
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
