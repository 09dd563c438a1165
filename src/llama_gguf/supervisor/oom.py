"""The kernel's information about a child's death: whether memory ran out.

Everything here is best effort: control groups may not be mounted, and the kernel's log may be
unreadable for us.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final

from llama_gguf.engines import exit_reasons

_MAX_KERNEL_RECORDS: Final = 10_000
_RECORD_BYTES: Final = 8192


def oom_kills(root: str = "/") -> int:
    """The number of processes in our control group that were killed for lack of memory."""
    return max((exit_reasons.oom_kills(_read(path)) for path in _event_files(root)), default=0)


class KillCount:
    """The kills of our control group, each of which explains one death.

    The kernel counts those of all engines together, so that one that was killed would otherwise
    explain the next death of each of the others too.

    Args:
        count: as ``oom_kills``.
    """

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._claimed = 0

    def now(self) -> int:
        """Before a process is started: the kills that cannot be its own."""
        return self._count()

    def claim(self, before: int) -> bool:
        """Whether there was a kill since *before* that no death before this one explains."""
        now = self._count()
        has_new = now > max(before, self._claimed)
        self._claimed = max(before, self._claimed) + has_new
        return has_new


def _event_files(root: str) -> list[str]:
    """The files with our control group's counters, by cgroups(7); in a container, the root's."""
    found = []
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        for place in {path, "/"}:
            if number == "0":
                found.append(f"{root}/sys/fs/cgroup{place}/memory.events")
            elif controllers == "memory":
                found.append(f"{root}/sys/fs/cgroup/memory{place}/memory.oom_control")
    return found


def kernel_names(pid: int, kmsg: str = "/dev/kmsg") -> bool:
    """Whether *pid* was killed for lack of memory, according to the kernel's log."""
    try:
        fd = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    records: list[bytes] = []
    try:
        # Each read returns one record; the end is reported as an error (EAGAIN).
        with contextlib.suppress(OSError):
            while len(records) < _MAX_KERNEL_RECORDS and (record := os.read(fd, _RECORD_BYTES)):
                records.append(record)
    finally:
        os.close(fd)
    return exit_reasons.is_oom_of(pid, b"".join(records).decode("utf-8", "replace"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
