"""One child process: spawned in a session of its own, its output read, ended for sure.

The only file that makes processes. A session of its own, so that neither Ctrl-C on
the terminal nor a container's SIGHUP reaches a child but through us: llama-server
dies of SIGHUP.
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

from llama_gguf.core.restart import Progress

LAST_LINES: Final = 40
"""Kept for explaining a death."""
MAX_LINE_BYTES: Final = 65536
_TETHER: Final = os.path.join(os.path.dirname(__file__), "tether.py")


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
        self.ended_because = ""
        """Why we ended it ourselves; empty when it died by itself."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int:
        """Of a dead child: below zero for a signal."""
        assert self._process.returncode is not None
        return self._process.returncode

    async def wait(self) -> int:
        """Its return code, once it is dead: below zero for a signal."""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send *number*; to a dead child nothing happens."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL for the child and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def interrupt(self, *, within_seconds: float) -> None:
        """SIGINT for the whole group, as Ctrl-C would, then SIGKILL for whoever is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self.wait()
        self.kill_group()
        await self.wait()

    async def stop(self, *, term_seconds: float) -> None:
        """SIGTERM, then SIGKILL for the child after *term_seconds*, and for what it has started."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(term_seconds):
                await self.wait()
        self.kill_group()
        await self.wait()

    async def read_output(self, on_line: Callable[[str], None]) -> None:
        """Hand over each line of output until there is no more; keep the last ones."""
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
        """How far it has come, to be compared with an earlier look."""
        cpu_seconds, memory, work = 0.0, 0, [self.lines_read]
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as f:
                fields = f.read().rpartition(")")[2].split()
            # proc(5): utime and stime; major faults, which a mapped model causes, and rss.
            cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            memory = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            work += [int(fields[9])]
        return Progress(cpu_seconds, tuple(work), memory)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line, with its end; of one that is over the limit, as much as fits at a time."""
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
    """Start *argv*, tied to our own life.

    Args:
        name: what logs call it.
        argv: program (a full path) and arguments.
        environ: its whole environment.
        reads_output: whether ``read_output`` will be called; else its output goes where ours does.
        pass_fds: file descriptors that it inherits.

    Raises:
        OSError: it cannot be started.
    """
    # A pipe of our own: with asyncio's, Python 3.11 waits for the pipe's end too, which a
    # grandchild may hold open.
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
