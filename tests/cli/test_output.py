"""Output through a thread: complete and in order, but the process never waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.blocked import BlockedPipe, StoppedTerminal

pytestmark = pytest.mark.processes

SECONDS = 30.0
PRELUDE = """
import logging, os, signal, sys, threading, time
from llama_gguf.cli import log_output, output
from llama_gguf.config.schema import LogSettings
from llama_gguf.cli.terminal import echo
output.take_over()
log_output.configure(LogSettings(), {})
log = logging.getLogger("llama_gguf.test")
"""


def run(script: str, *, stdout: int, stderr: int) -> int:
    """The exit status of *script*, run after the prelude."""
    environ = {"PATH": os.defpath, "TERM": "xterm"}
    argv = [sys.executable, "-c", PRELUDE + script]
    return subprocess.run(
        argv, stdout=stdout, stderr=stderr, env=environ, timeout=SECONDS, check=False
    ).returncode


def read_both(script: str) -> tuple[int, str]:
    """The exit status of *script*, and its output, with one pipe for both streams."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
        text=True,
    )
    return done.returncode, done.stdout


# With a reader ------------------------------------------------------------------------------------


def test_everything_up_to_the_last_line_is_printed_in_order() -> None:
    script = """
for n in range(5000):
    (echo if n % 2 else sys.stderr.write)(f"line {n}" + ("" if n % 2 else "\\n"))
"""
    status, shown = read_both(script)

    assert status == 0
    assert shown.splitlines() == [f"line {n}" for n in range(5000)]


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("raise ValueError('the reason')", 1)]
)
def test_output_at_exit_is_printed(end: str, status: int) -> None:
    left, shown = read_both(f"log.error('the last line'); {end}")

    assert left == status
    assert "the last line" in shown
    assert ("ValueError: the reason" in shown) == (status == 1)


def test_a_line_is_written_at_once_and_not_only_at_exit() -> None:
    # Output is not buffered until there is more, or until the exit.
    script = "log.info('alive'); threading.Event().wait()"
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script], stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert "alive" in process.stderr.readline()
        process.send_signal(signal.SIGKILL)


def test_unencodable_text_is_printed_as_before() -> None:
    status, shown = read_both("sys.stderr.write('\\udc80 \\u00e4\\n')")

    assert (status, shown.rstrip()) == (0, "\\udc80 \u00e4")


def test_a_terminal_is_still_recognised() -> None:
    with StoppedTerminal(is_stopped=False) as terminal:
        script = "echo(f'{sys.stdout.isatty()} {sys.stderr.isatty()} {sys.stderr.fileno()}')"
        assert run(script, stdout=terminal.fd, stderr=terminal.fd) == 0
        assert "True True 2" in terminal.read_until("2")


# Blocked ------------------------------------------------------------------------------------------


@pytest.fixture(params=[BlockedPipe, StoppedTerminal], ids=["pipe", "terminal"])
def blocked(request: pytest.FixtureRequest) -> Iterator[BlockedPipe | StoppedTerminal]:
    with request.param() as blocked:
        yield blocked


def test_a_blocked_output_delays_neither_work_nor_exit(
    blocked: BlockedPipe | StoppedTerminal,
) -> None:
    script = "for n in range(50_000): log.error('%100d', n)\necho('the end'); sys.exit(3)"

    assert run(script, stdout=blocked.fd, stderr=blocked.fd) == 3


def test_a_blocked_output_does_not_delay_a_progress_bar(
    blocked: BlockedPipe | StoppedTerminal,
) -> None:
    script = """
from llama_gguf.cli.terminal import LoadMeter, download_meter
with download_meter("m.gguf") as report:
    for n in range(1000):
        report(n, 1000)
meter = LoadMeter({"TERM": "xterm"}, after_seconds=0.0, every_seconds=0.0)
for n in range(1000):
    meter.show("loading", n / 1000)
    log.info("meanwhile")
meter.hide()
"""
    assert run(script, stdout=blocked.fd, stderr=blocked.fd) == 0


def test_a_blocked_output_does_not_delay_the_other(
    blocked: BlockedPipe | StoppedTerminal,
) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as file:
        status = run("log.error('x'); echo('here')", stdout=writing, stderr=blocked.fd)
        os.close(writing)

        assert (status, file.read()) == (0, "here\n")


def test_lost_lines_are_counted_and_reported_when_reading_resumes() -> None:
    # Each line has 1,000 bytes: somewhat more than 3,000 are queued, the others are lost.
    script = """
for n in range(10_000):
    sys.stderr.write(f"line {n}".ljust(999) + "\\n")
echo("handed over")
sys.stdin.readline()
log.warning("after it")
"""
    with BlockedPipe() as pipe:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=pipe.fd,
        )
        with process:
            pipe.close_writer()
            assert process.stdout is not None
            assert process.stdout.readline() == b"handed over\n"
            shown = pipe.read_until("lines are lost")
            process.communicate(b"\n")
        shown += pipe.read_rest()

    assert process.returncode == 0
    lines = [line.split() for line in shown.splitlines() if line]
    written = [int(line[1]) for line in lines if line[0] == "line"]
    (lost,) = [int(line[-4]) for line in lines if line[-3:] == ["lines", "are", "lost"]]
    assert written == list(range(len(written)))
    assert 3000 < len(written) < 4000
    assert len(written) + lost == 10_000
    assert "standard error was not read for a time" in shown
    assert lines[-1][-2:] == ["after", "it"]


# Write errors -------------------------------------------------------------------------------------


def test_a_closed_pipe_does_not_end_the_process() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run("log.error('x'); echo('y'); sys.exit(3)", stdout=writing, stderr=writing) == 3
    finally:
        os.close(writing)


def test_a_terminal_that_another_process_made_non_blocking_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    script = "for n in range(300): sys.stdout.write('x' * 9999 + '\\n')"
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + script], stdout=writing)
    os.close(writing)
    with process, os.fdopen(reading, "rb") as file:
        assert len(file.read()) == 3_000_000
    assert process.returncode == 0


# Any text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii:strict", b"caf\\xe9 caf\xe9\n"),
        ("utf-8:strict", b"caf\xc3\xa9 caf\xe9\n"),
        ("latin-1:strict", b"caf\xe9 caf\xe9\n"),
    ],
)
@pytest.mark.parametrize("is_taken_over", [False, True])
def test_text_that_the_terminal_cannot_show_is_escaped(
    encoding: str, expected: bytes, is_taken_over: bool
) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from llama_gguf.cli import output, terminal\n"
        "terminal.accept_all_text()\n"
        f"if {is_taken_over}: output.take_over()\n"
        "sys.stdout.write('caf\\xe9 caf\\udce9\\n')"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )

    assert done.stdout == expected
    assert done.stderr == b""
