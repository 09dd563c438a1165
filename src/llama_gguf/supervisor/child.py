"""One child process: spawned in its own session, its output read, its end guaranteed.

The only module of the supervisor that creates processes. In a separate session, neither Ctrl-C on
the terminal nor a container's SIGHUP reaches a child directly: SIGHUP ends llama-server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llama_gguf.engines.watchdogs import Progress

LAST_LINES: Final = 40
"""Kept to explain a death."""
MAX_LINE_BYTES: Final = 65536
_TETHER: Final = os.path.join(os.path.dirname(__file__), "pdeathsig.py")


def own_command(*words: str) -> list[str]:
    """``llama-gguf`` with *words*, which imports modules from where this process does.

    ``python -m`` also imports from the current directory, which is as it should be only if we were
    started like that.
    """
    try:
        safe = [] if os.getcwd() in sys.path else ["-P"]
    except OSError:  # it has been removed
        safe = ["-P"]
    return [sys.executable, *safe, "-m", "llama_gguf", *words]


class Child:
    """A running process, or one that has died."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, output: int | None = None
    ) -> None:
        self.name = name
        self._process = process
        self._output = None if output is None else os.fdopen(output, "rb", buffering=0)
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.lines_read = 0
        self.was_out_of_memory = False
        """Whether the kernel killed it because memory ran out; known after its death."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int:
        """Once it is dead: below zero for a signal."""
        assert self._process.returncode is not None
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it is dead, and return its return code: below zero for a signal."""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send *number*; no effect on a dead child."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """Send SIGKILL to the child and to its descendants in the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def interrupt(self, *, within_seconds: float) -> None:
        """Send SIGINT to the group, as Ctrl-C does, then SIGKILL to the processes that remain."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self.wait()
        self.kill_group()
        await self.wait()

    async def stop(self, *, term_seconds: float) -> None:
        """Send SIGTERM; at its death or after *term_seconds*, SIGKILL to the whole group."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(term_seconds):
                await self.wait()
        self.kill_group()
        await self.wait()

    async def read_output(self, on_line: Callable[[str], None]) -> None:
        """Call *on_line* with each line of output until its end; keep the last ones."""
        assert self._output is not None
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._output
        )
        try:
            while raw := await _line(reader):
                line = raw.decode("utf-8", "replace").rstrip()
                self.lines_read += 1
                self.last_lines.append(line)
                on_line(line)
        finally:
            transport.close()

    def progress(self) -> Progress:
        """Measure it and its descendants, for a comparison with an earlier measurement."""
        measured = [_measure(pid) for pid in _family(self.pid)]
        return Progress(
            cpu_seconds=sum(each.cpu_seconds for each in measured),
            work=(self.lines_read, *(sum(each.work) for each in measured)),
            memory_bytes=sum(each.memory_bytes for each in measured),
            read_bytes=sum(each.read_bytes for each in measured),
        )


def _family(pid: int) -> list[int]:
    """*pid* and its descendants: a LLAMA_SERVER may be a script that starts the real one."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError, ValueError):
            children = _read(f"/proc/{parent}/task/{parent}/children")
            found += [int(child) for child in children.split()]
    return found


def _measure(pid: int) -> Progress:
    """Measure one process; all zeros if it is gone."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        # proc(5): major faults, which a mapped model causes; utime and stime; rss.
        stat = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        _, resident, mapped, *_ = (int(n) * page for n in _read(f"/proc/{pid}/statm").split())
        cpu_seconds = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        faults = int(stat[9])
    except (OSError, ValueError, IndexError):
        return Progress()
    read = 0
    with contextlib.suppress(OSError, ValueError, IndexError):  # reading it may be forbidden
        read = int(_read(f"/proc/{pid}/io").split()[1])
    return Progress(cpu_seconds, (faults,), resident, max(read, mapped))


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as f:
        return f.read()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line, with its end; a line over the limit is returned in pieces."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await reader.read(max(overrun.consumed, 1))


async def spawn(
    name: str,
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    reads_output: bool = False,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start *argv*; the process dies with ours.

    Args:
        name: for logs.
        argv: program (a full path) and arguments.
        environ: its whole environment.
        reads_output: whether ``read_output`` will be called; otherwise it inherits our output.
        pass_fds: file descriptors that it inherits.

    Raises:
        OSError: it cannot be started.
    """
    # Not asyncio's pipe: Python 3.11 waits for its end, too, and a grandchild may hold it open.
    ours, theirs = os.pipe() if reads_output else (None, None)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _TETHER, str(os.getpid())),
            *argv,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except BaseException:
        if ours is not None:
            os.close(ours)
        raise
    finally:
        if theirs is not None:
            os.close(theirs)
    return Child(name, process, ours)
