"""Reaps orphaned processes that the kernel has made our children.

As PID 1 of a container, or as a subreaper, we become the parent of every orphan, and it stays a
zombie until we wait for it. We wait for the children that we have started at once, so a zombie that
is still there at the next look is an orphan. As any other process, we never have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Final

from llama_gguf.events import EventLog

_log: Final = EventLog(__name__)

LOOK_SECONDS: Final = 2.0


async def keep_reaping(every_seconds: float = LOOK_SECONDS) -> None:
    """Wait for every zombie that is an orphan."""
    seen: set[tuple[int, str]] = set()
    while True:
        await asyncio.sleep(every_seconds)
        zombies = {each for each in _children() if _is_zombie(each[0])} if _has_zombie() else set()
        for pid, _ in zombies & seen:
            _reap(pid)
        seen = zombies


def _has_zombie() -> bool:
    """Whether a child has ended and has not been waited for: one system call, at each look."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
        _log.info("orphan_reaped", "Reaped process {pid}, whose parent had exited", pid=pid)


def kill_all() -> None:
    """Send SIGKILL to every remaining descendant, such as a tool that hangs. For the very end."""
    fields = {pid: _stat(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    parents = {int(pid): int(known[1]) for pid, known in fields.items() if known}
    doomed = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for pid in doomed - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children() -> set[tuple[int, str]]:
    """Our children, each with its start time, since the kernel reuses process ids."""
    ours = str(os.getpid())
    found = set()
    for entry in os.listdir("/proc"):
        fields = _stat(entry) if entry.isdigit() else []
        if fields and fields[1] == ours:
            found.add((int(entry), fields[19]))
    return found


def _is_zombie(pid: int) -> bool:
    fields = _stat(str(pid))
    return bool(fields) and fields[0] == "Z"


def _stat(pid: str) -> list[str]:
    """The fields of proc(5)'s stat from the state on; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
