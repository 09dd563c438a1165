"""The helper with which other tests check whether a process runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import is_running

pytestmark = pytest.mark.processes


def test_a_zombie_is_not_a_running_process() -> None:
    waits = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as child:
        assert is_running(child.pid)

        child.kill()
        # Its status stays to be taken, so that it is a zombie from here on.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert os.path.exists(f"/proc/{child.pid}")
        assert not is_running(child.pid)
    assert not is_running(child.pid)


def test_parentheses_in_the_name_of_a_program_do_not_matter(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as child:
        try:
            assert is_running(child.pid)
        finally:
            child.kill()
