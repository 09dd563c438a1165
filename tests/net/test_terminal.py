from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llama_gguf.net.terminal import Terminal
from tests.support.serve import in_terminal

pytestmark = pytest.mark.processes

# It blocks SIGHUP, so that none comes between two calls.
SCRIPT = (
    f"import sys; sys.path[:0] = {sys.path!r}\n"
    "import os, signal\n"
    "from llama_gguf.net.terminal import Terminal\n"
    "terminal = Terminal()\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])\n"
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    "os.kill(os.getpid(), signal.SIGHUP)\n"
    "for _ in range(int(sys.argv[1])):\n"
    "    signal.sigwait([signal.SIGHUP])\n"
    "    print(terminal.is_gone(), flush=True)\n"
)


def answers(*, nohup: bool = False) -> list[str]:
    """What a process finds at a SIGHUP with its terminal, and at the one when that is closed."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        in_terminal("-c", SCRIPT, "2", nohup=nohup),
        stdin=slave,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    with process:
        try:
            os.close(slave)
            assert process.stdout is not None
            first = process.stdout.readline()
            os.close(master)
            return [first.strip(), process.stdout.readline().strip()]
        finally:
            process.kill()


def test_a_terminal_that_is_closed_is_gone() -> None:
    assert answers() == ["False", "True"]


def test_with_nohup_it_does_not_matter() -> None:
    assert answers(nohup=True) == ["False", "False"]


def test_a_terminal_that_never_was_is_not_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "False"
    assert not Terminal().is_gone()
