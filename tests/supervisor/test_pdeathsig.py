from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama_gguf.supervisor import pdeathsig
from tests.support.processes import is_running, until_gone

pytestmark = pytest.mark.processes

TETHER = Path(pdeathsig.__file__)


def tethered(program: Sequence[str], *, parent: int | None = None) -> list[str]:
    number = os.getpid() if parent is None else parent
    return [sys.executable, "-I", "-S", str(TETHER), str(number), *program]


def run(program: Sequence[str], *, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        tethered(program, parent=parent), capture_output=True, text=True, timeout=30, check=False
    )


def test_it_becomes_the_program_and_keeps_its_process_id() -> None:
    with subprocess.Popen(tethered(["/bin/sh", "-c", "echo $$"]), stdout=subprocess.PIPE) as child:
        out, _ = child.communicate()

    assert int(out) == child.pid


def test_arguments_arrive_as_they_are() -> None:
    words = ["two words", "", "'\"$HOME\"'", "--flag=ä", "-I"]

    out = run(["/bin/sh", "-c", 'printf "%s\\n" "$@"', "sh", *words]).stdout

    assert out.splitlines() == words


def test_the_programs_exit_status_is_its_own() -> None:
    assert run(["/bin/sh", "-c", "exit 7"]).returncode == 7


def test_nothing_is_started_if_the_parent_is_dead_already(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    result = run(["/bin/sh", "-c", f"touch {trace}"], parent=os.getpid() + 1)

    assert result.returncode == 1
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("nowhere", 127, "No such file or directory"),
        ("locked", 126, "Permission denied"),
        ("", 126, "Permission denied"),
        ("not-a-program", 126, "Exec format error"),
    ],
)
def test_a_program_that_cannot_be_run_is_named(
    tmp_path: Path, name: str, status: int, reason: str
) -> None:
    (tmp_path / "locked").write_text("#!/bin/sh\n")
    (tmp_path / "not-a-program").write_text("just text\n")
    (tmp_path / "not-a-program").chmod(0o755)
    program = os.path.join(tmp_path, name)

    result = run([program])

    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr == f"{program} cannot be run: {reason}\n"


def test_it_dies_with_its_parent_even_if_it_ignores_every_signal() -> None:
    stubborn = "trap '' TERM HUP INT; echo $$; while :; do sleep 1; done"
    parent = (
        "import os, subprocess, sys, time\n"
        f"argv = [sys.executable, '-I', '-S', {str(TETHER)!r}, str(os.getpid())]\n"
        f"subprocess.Popen([*argv, '/bin/sh', '-c', {stubborn!r}], start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            assert is_running(pid)
        finally:
            process.send_signal(signal.SIGKILL)

        until_gone(pid)
