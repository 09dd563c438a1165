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

LAST_LINES: Final = 40
"""Kept for explaining a death."""
MAX_LINE_BYTES: Final = 65536
_TETHER: Final = os.path.join(os.path.dirname(__file__), "tether.py")


class Child:
    """A running process, or one that has died."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
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

    async def stop(self, *, term_seconds: float) -> None:
        """SIGTERM, then SIGKILL for whoever is left after *term_seconds*."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(term_seconds):
                await self.wait()
        except TimeoutError:
            self.kill_group()
            await self.wait()

    async def read_output(self, on_line: Callable[[str], None]) -> None:
        """Hand over each line of output until there is no more; keep the last ones."""
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            try:
                raw = await stdout.readline()
            except ValueError:  # a line over the limit; what there is of it was dropped
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            self.lines_read += 1
            self.last_lines.append(line)
            on_line(line)

    def progress(self) -> tuple[int, ...]:
        """Numbers of which some change while it does anything: CPU, memory, I/O, output."""
        numbers = [self.lines_read]
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as f:
                fields = f.read().rpartition(")")[2].split()
            # proc(5): utime, stime, rss; and major faults, which a mapped model causes.
            numbers += [int(fields[i]) for i in (9, 11, 12, 21)]
        return tuple(numbers)


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
    pipe = asyncio.subprocess.PIPE if reads_output else None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", _TETHER, str(os.getpid())),
        *argv,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=asyncio.subprocess.STDOUT if reads_output else None,
        start_new_session=True,
        pass_fds=pass_fds,
        limit=MAX_LINE_BYTES,
    )
    return Child(name, process)
