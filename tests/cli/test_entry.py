"""Signals that arrive while the imports are still running."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.clients import status_or_none
from tests.support.processes import DEADLINE_SECONDS, children, free_port, tethered, until
from tests.support.serve import Serve

pytestmark = pytest.mark.processes

ROOT: Final = Path(__file__).parents[2]
STOPS: Final = (signal.SIGTERM, signal.SIGINT)
EARLY_SECONDS: Final = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""The signals, one after the other, from the process's start until it serves."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Not started yet."""
    serve = Serve(tmp_path)
    yield serve
    serve.end()


def signals(pid: int, kind: str) -> set[int]:
    """The signals that *pid* has caught (``SigCgt``) or blocked (``SigBlk``): proc(5)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return set()
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith(kind)), 0)
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def status_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit status, when it has exited."""
    return process.wait(DEADLINE_SECONDS)


def test_signals_are_handled_before_slow_imports() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import os, signal; before = set(sys.modules); import llama_gguf.cli.entry\n"
        "print(*sorted(set(sys.modules) - before))"
    )

    done = subprocess.run(
        # Without `site`, which may import more.
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    ours = {"llama_gguf", "llama_gguf.cli", "llama_gguf.cli.entry"}
    assert set(done.stdout.split()) == {"__future__", *ours}


def test_the_command_starts_in_this_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert project["scripts"]["llama-gguf"] == "llama_gguf.cli.entry:main"


@pytest.mark.parametrize("number", STOPS)
def test_a_server_stopped_during_its_start_exits_with_0(
    serve: Serve, number: signal.Signals
) -> None:
    serve.start()
    # SIGINT has Python's handler before it has ours, so SIGTERM shows that ours are set.
    serve.until(lambda: signal.SIGTERM in signals(serve.pid, "SigCgt"))

    serve.signal(number)

    assert serve.wait() == 0
    assert serve.err == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_an_early_reload_signal_ends_nothing(serve: Serve, number: signal.Signals) -> None:
    serve.start()
    serve.until(lambda: signal.SIGTERM in signals(serve.pid, "SigCgt"))

    serve.signal(number)

    serve.until_ready()


def test_other_commands_keep_the_default_signal_handling() -> None:
    argv = [sys.executable, "-m", "llama_gguf", "keys", "add", "--help"]
    code = (
        f"import sys; sys.argv = {argv[2:]!r}\n"
        "import signal; from llama_gguf.cli import main\n"
        "main.main = lambda: print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "from llama_gguf.cli.entry import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout == "True\n"


# As PID 1 of a container --------------------------------------------------------------------------


@functools.cache
def new_pid_namespace() -> Sequence[str]:
    """A command that runs another as PID 1; empty if that is not permitted."""
    program = shutil.which("unshare") or "unshare"
    for rights in ((), ("--user", "--map-root-user")):
        argv = (program, *rights, "--pid", "--fork", "--kill-child", "--mount-proc")
        try:
            subprocess.run([*argv, "true"], check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            continue
        return argv
    return ()


@contextmanager
def as_pid_1(
    serve: Serve, *argv: str, blocks: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """*argv* as PID 1 of a namespace: its parent, which returns its status, and its pid.

    *blocks*: whether the parent has blocked SIGTERM and SIGINT.
    """
    if not new_pid_namespace():
        pytest.skip("no namespace for processes can be made here")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS if blocks else ())
    try:
        process = subprocess.Popen(
            tethered(*new_pid_namespace(), *argv),
            env=serve.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield process, until(lambda: next(iter(children(process.pid)), 0))
    finally:
        process.kill()
        process.wait()


def command(name: str, serve: Serve) -> list[str]:
    model = [str(serve.model)] if name == "serve" else []
    return [sys.executable, "-m", "llama_gguf", name, *model]


@pytest.mark.parametrize("name", ["serve", "gateway", "health"])
def test_as_pid_1_no_stop_signal_is_lost_after_the_first_handler(serve: Serve, name: str) -> None:
    # The first handler is set long before the imports end.
    for seconds in (0.0, 0.01, 0.05, 0.1, 0.2):
        with as_pid_1(serve, *command(name, serve)) as (process, pid):
            until(lambda pid=pid: signal.SIGTERM in signals(pid, "SigCgt"))  # type: ignore[misc]
            time.sleep(
                seconds
            )  # waits for nothing: each duration is a different phase of the start
            os.kill(pid, signal.SIGTERM)

            assert status_of(process) == 0, seconds


@pytest.mark.parametrize("number", STOPS)
def test_as_pid_1_no_stop_signal_is_lost_if_the_parent_blocked_it(
    serve: Serve, number: signal.Signals
) -> None:
    for seconds in EARLY_SECONDS:
        with as_pid_1(serve, *command("serve", serve), blocks=True) as (process, pid):
            time.sleep(
                seconds
            )  # waits for nothing: each duration is a different phase of the start
            os.kill(pid, number)

            assert status_of(process) == 0, seconds


def test_the_images_entrypoint_blocks_stop_signals(serve: Serve) -> None:
    # As installed in the image. A shell that forks blocks signals for a moment as well, so the
    # program itself reports that the entrypoint has started it.
    program, reached = serve.folder / "llama-gguf", serve.folder / "reached"
    program.write_text(f'#!/bin/sh\n: > {reached}\nexec {sys.executable} -m llama_gguf "$@"\n')
    program.chmod(0o755)
    serve.environ["PATH"] = f"{serve.folder}:{serve.environ['PATH']}"
    for number in STOPS:
        argv = (str(ROOT / "scripts" / "start.sh"), str(serve.model))
        with as_pid_1(serve, *argv) as (process, pid):
            until(reached.exists)
            os.kill(pid, number)

            assert status_of(process) == 0, number
            reached.unlink()


# Standard streams that are closed -----------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_server_starts_with_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    port = free_port()
    environ = {"HOST": "127.0.0.1", "PORT_HEALTH": str(port), "DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "llama_gguf", "health"]
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *tethered(*command)],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: status_or_none(port) == 200)
        # No socket has one of their numbers.
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)} == {
            os.devnull
        }
    finally:
        process.terminate()
        assert status_of(process) == 0
