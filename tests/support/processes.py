"""Processes of the tests: waiting for them, looking at them, and ports for them.

Nothing here sleeps in the hope that something has happened: ``until`` waits for a fact that can be
seen from outside (a line, a response, a process), and fails at a deadline.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from llama_gguf.supervisor import pdeathsig

DEADLINE_SECONDS: Final = 30.0
"""After which an event that has not occurred is considered to never occur."""
POLL_SECONDS: Final = 0.01
_ENDED: Final = ("Z", "X")  # proc_pid_stat(5): zombie, dead

Found = TypeVar("Found")


def until(
    look: Callable[[], Found],
    explain: str | Callable[[], str] = "",
    *,
    seconds: float = DEADLINE_SECONDS,
) -> Found:
    """Poll *look* until its result is true, and return that.

    Args:
        look: also fails the test if it raises.
        explain: what was expected, or a function that returns what there was instead.
        seconds: until the test fails.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() >= deadline:
            text = explain if isinstance(explain, str) else explain()
            raise AssertionError(f"it did not happen within {seconds:.0f} s: {text or look}")
        time.sleep(POLL_SECONDS)
    return found


def is_running(pid: int) -> bool:
    """Whether there is a process *pid* that has not ended.

    The existence of ``/proc/PID`` does not show that. A process that has ended remains as a zombie
    until its parent has read its status; an orphan's parent is PID 1, which may take its time.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends during the read
        return False
    # The state follows the name, which is in parentheses and may contain them.
    return stat.rpartition(")")[2].split()[0] not in _ENDED


def until_gone(*pids: int) -> None:
    until(lambda: not any(is_running(pid) for pid in pids), f"the end of {pids}")


def command_line(pid: int) -> str:
    """Its arguments, separated by spaces; empty if there is no such process."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace")


def children(parent: int) -> dict[int, str]:
    """The running children of *parent* and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_running(int(entry.name)):
            continue
        with contextlib.suppress(OSError, IndexError):
            stat = (entry / "stat").read_text(errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found[int(entry.name)] = command_line(int(entry.name))
    return found


def environment_of(pid: int) -> dict[str, str]:
    """What the process *pid* was started with."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(pair.split("=", 1) for pair in raw.split("\0") if "=" in pair)


def tethered(*argv: str) -> list[str]:
    """*argv*, for a process that is killed when the tests end, even if they are killed."""
    return [sys.executable, "-I", "-S", pdeathsig.__file__, str(os.getpid()), *argv]


_RANDOM: Final = random.SystemRandom()  # other processes run tests at the same time


def free_ports(count: int) -> list[int]:
    """Different ports of loopback on which nothing listens, below those of clients."""
    found: set[int] = set()
    while len(found) < count:
        found.add(row_of_ports(1))
    return list(found)


def row_of_ports(number: int) -> int:
    """The first of *number* free ports in a row, below those of clients."""
    while True:
        first = _RANDOM.randrange(10_000, 32_000)
        if are_free(range(first, first + number)):
            return first


def are_free(ports: range) -> bool:
    for port in ports:
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def free_port() -> int:
    return free_ports(1)[0]
