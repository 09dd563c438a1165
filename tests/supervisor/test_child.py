"""Real processes, most of them one line of shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llama_gguf.engines.watchdogs import Progress, StallWatch
from llama_gguf.supervisor.child import LAST_LINES, MAX_LINE_BYTES, Child, spawn
from tests.support.engines import FAKE_LLAMA
from tests.support.processes import until, until_gone

pytestmark = pytest.mark.processes

FOREVER = "while :; do sleep 0.05; done"


class Watched:
    """A child whose output is being read."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.lines: list[str] = []
        self._came: asyncio.Queue[str] = asyncio.Queue()
        self.reading = asyncio.get_running_loop().create_task(child.read_output(self._take))

    def _take(self, line: str) -> None:
        self.lines.append(line)
        self._came.put_nowait(line)

    async def next_line(self) -> str:
        return await self._came.get()


@asynccontextmanager
async def running(script: str, environ: dict[str, str] | None = None) -> AsyncIterator[Watched]:
    child = await spawn(
        "it",
        ["/bin/sh", "-c", script],
        environ={"PATH": os.defpath} if environ is None else environ,
        reads_output=True,
    )
    watched = Watched(child)
    try:
        yield watched
    finally:
        child.kill_group()
        await child.wait()
        await watched.reading


async def lines_of(script: str, environ: dict[str, str] | None = None) -> list[str]:
    async with running(script, environ) as watched:
        await watched.child.wait()
        await watched.reading
    return watched.lines


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


# Output -------------------------------------------------------------------------------------------


def test_output_and_errors_are_passed_on_line_by_line() -> None:
    async def test() -> None:
        async with running("echo one; echo two >&2; echo; printf three") as watched:
            assert await watched.child.wait() == 0
            await watched.reading
        assert watched.lines == ["one", "two", "", "three"]
        assert list(watched.child.last_lines) == watched.lines

    run(test)


def test_only_the_last_lines_are_kept() -> None:
    async def test() -> None:
        async with running("i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); done") as watched:
            await watched.child.wait()
            await watched.reading
        assert list(watched.child.last_lines) == [str(i) for i in range(100 - LAST_LINES, 100)]

    run(test)


def test_bytes_that_are_not_text_do_no_harm() -> None:
    async def test() -> None:
        assert await lines_of(r"printf 'a\377b\r\nc\n'") == ["a\N{REPLACEMENT CHARACTER}b", "c"]

    run(test)


def test_a_line_without_end_does_not_stop_the_reading_of_what_follows() -> None:
    async def test() -> None:
        longer = 3 * MAX_LINE_BYTES
        lines = await lines_of(f"head -c {longer} /dev/zero | tr '\\0' x; echo; echo after")
        assert lines[-1] == "after"

    run(test)


def test_a_grandchild_that_holds_the_pipe_does_not_hide_the_death() -> None:
    async def test() -> None:
        async with running("sleep 60 & echo $!; exit 5") as watched:
            grandchild = int(await watched.next_line())
            try:
                # asyncio's wait() on Python 3.11 returns only when the pipe is closed too.
                async with asyncio.timeout(5):
                    assert await watched.child.wait() == 5
            finally:
                os.kill(grandchild, signal.SIGKILL)

    run(test)


# What it gets -------------------------------------------------------------------------------------


def test_the_environment_is_the_one_passed_and_nothing_else() -> None:
    async def test() -> None:
        environ = {"ONLY": "this", "LC_ALL": "C.UTF-8"}
        program = ["/bin/cat", "/proc/self/environ"]
        child = await spawn("it", program, environ=environ, reads_output=True)
        watched = Watched(child)
        await child.wait()
        await watched.reading
        assert watched.lines == ["ONLY=this\0LC_ALL=C.UTF-8\0"]

    run(test)


def test_a_child_leads_a_separate_session_and_has_an_empty_stdin() -> None:
    async def test() -> None:
        async with running("readlink /proc/$$/fd/0; read x; echo $?; " + FOREVER) as watched:
            assert await watched.next_line() == "/dev/null"
            assert await watched.next_line() == "1"
            assert os.getsid(watched.child.pid) == watched.child.pid

    run(test)


def test_a_child_inherits_only_the_descriptors_that_are_passed() -> None:
    async def test() -> None:
        kept, passed = os.pipe(), os.pipe()
        os.set_inheritable(kept[1], True)
        script = f"cd /proc/$$/fd; test ! -e {kept[1]} && echo hello > {passed[1]}"
        try:
            child = await spawn(
                "it",
                ["/bin/sh", "-c", script],
                environ={"PATH": os.defpath},
                pass_fds=[passed[1]],
            )
            assert await child.wait() == 0
            assert os.read(passed[0], 100) == b"hello\n"
        finally:
            for fd in (*kept, *passed):
                os.close(fd)

    run(test)


def test_a_missing_program_is_a_death_with_a_reason() -> None:
    async def test() -> None:
        child = await spawn("it", ["/nowhere/llama-server"], environ={}, reads_output=True)
        watched = Watched(child)
        assert await child.wait() == 127
        await watched.reading
        assert watched.lines == ["/nowhere/llama-server cannot be run: No such file or directory"]

    run(test)


# The end ------------------------------------------------------------------------------------------


def test_a_child_that_handles_sigterm_exits_with_its_own_status() -> None:
    async def test() -> None:
        async with running(f"trap 'exit 3' TERM; echo set; {FOREVER}") as watched:
            await watched.next_line()
            await watched.child.stop(term_seconds=20)
            assert watched.child.returncode == 3

    run(test)


def test_a_child_that_ignores_sigterm_is_killed_with_its_descendants() -> None:
    async def test() -> None:
        script = f"trap '' TERM; sleep 60 & echo $!; {FOREVER}"
        async with running(script) as watched:
            grandchild = int(await watched.next_line())
            await watched.child.stop(term_seconds=0.05)
            assert watched.child.returncode == -signal.SIGKILL
            until_gone(watched.child.pid, grandchild)

    run(test)


def test_the_descendants_of_a_child_that_exits_on_sigterm_are_killed() -> None:
    # A LLAMA_SERVER that is a shell script without `exec` is such a child.
    async def test() -> None:
        async with running("sleep 60 & echo $!; wait") as watched:
            grandchild = int(await watched.next_line())
            try:
                async with asyncio.timeout(5):
                    await watched.child.stop(term_seconds=20)
                until_gone(grandchild)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(grandchild, signal.SIGKILL)

    run(test)


def test_death_by_a_signal_is_a_return_code_below_zero() -> None:
    async def test() -> None:
        async with running("kill -SEGV $$") as watched:
            assert await watched.child.wait() == -signal.SIGSEGV

    run(test)


def test_signals_to_a_dead_child_do_nothing() -> None:
    async def test() -> None:
        async with running("exit 0") as watched:
            await watched.child.wait()
            watched.child.signal(signal.SIGTERM)
            watched.child.kill_group()
            await watched.child.stop(term_seconds=20)
            assert watched.child.returncode == 0

    run(test)


# Progress -----------------------------------------------------------------------------------------


def test_output_is_progress() -> None:
    async def test() -> None:
        async with running(f"read x; echo line; {FOREVER}") as watched:
            before = watched.child.progress()
            await watched.next_line()
            assert watched.child.progress() != before

    run(test)


def test_work_is_progress() -> None:
    async def test() -> None:
        async with running("echo begun; while :; do :; done") as watched:
            await watched.next_line()
            before = watched.child.progress()
            until(lambda: watched.child.progress() != before)

    run(test)


def test_the_work_of_a_scripts_child_is_progress() -> None:
    async def test() -> None:
        async with running("sh -c 'echo begun; while :; do :; done'; true") as watched:
            await watched.next_line()
            before = watched.child.progress()
            until(lambda: watched.child.progress().cpu_seconds > before.cpu_seconds)

    run(test)


def test_reading_is_progress(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"x" * (4 << 20))

    async def test() -> None:
        async with running(f"cat {file} /dev/zero | sleep 60") as watched:
            until(lambda: watched.child.progress().read_bytes > 0)

    run(test)


def test_waiting_is_no_progress() -> None:
    async def test() -> None:
        async with running("echo begun; exec sleep 60") as watched:
            await watched.next_line()
            command_line = Path(f"/proc/{watched.child.pid}/cmdline")
            until(lambda: b"sleep" in command_line.read_bytes())
            seen = set()
            for _ in range(20):
                await asyncio.sleep(0.01)
                seen.add(watched.child.progress())
            # At the first measurement it may not sleep yet.
            assert len(seen) <= 2

    run(test)


def test_a_dead_child_makes_no_progress_and_raises_nothing() -> None:
    async def test() -> None:
        async with running("exit 0") as watched:
            await watched.child.wait()
            await watched.reading
            assert watched.child.progress() == watched.child.progress() == Progress(work=(0, 0))

    run(test)


def test_responding_to_our_own_probes_is_no_progress(tmp_path: Path) -> None:
    # Otherwise an engine whose load hangs is never given up: it is probed four times a second,
    # 1200 times within the default STARTUP_STALL_TIMEOUT, and each response costs CPU time.
    socket_path = str(tmp_path / "s")

    async def test() -> None:
        script = f"exec {sys.executable} {FAKE_LLAMA} --host {socket_path} --load-seconds 999"
        async with running(script) as watched:
            await watched.next_line()
            stall_watch = StallWatch(300.0)
            reader, writer = await asyncio.open_unix_connection(socket_path)
            for n in range(1200):
                assert not stall_watch.check(watched.child.progress(), n / 4)
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b'"code":503}}')
            writer.close()
            assert stall_watch.check(watched.child.progress(), 300.1)

    run(test)
