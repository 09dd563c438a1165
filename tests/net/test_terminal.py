from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llama_gguf.net.terminal import Terminal
from tests.support.serve import in_terminal

pytestmark = pytest.mark.processes

SCRIPT = (
    f"import sys; sys.path[:0] = {sys.path!r}\n"
    "import os, signal\n"
    "from llama_gguf.net.terminal import Terminal\n"
    "terminal = Terminal()\n"
    "def show(*_): print(terminal.is_gone(), flush=True)\n"
    "signal.signal(signal.SIGHUP, show)\n"
    "os.kill(os.getpid(), signal.SIGHUP)\n"
    "signal.pause()\n"
)


def answers(*, nohup: bool = False) -> list[str]:
    """What a process finds at a SIGHUP with its terminal, and at the one when that is closed."""
    master, slave = os.openpty()
    with subprocess.Popen(
        in_terminal("-c", SCRIPT, nohup=nohup),
        stdin=slave,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        os.close(slave)
        assert process.stdout is not None
        first = process.stdout.readline()
        os.close(master)
        return [first.strip(), process.stdout.readline().strip()]


def test_a_terminal_that_is_closed_is_gone() -> None:
    assert answers() == ["False", "True"]


def test_with_nohup_it_does_not_matter() -> None:
    assert answers(nohup=True) == ["False", "False"]


def test_a_terminal_that_never_was_is_not_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("signal.pause()", "")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "False"
    assert not Terminal().is_gone()
