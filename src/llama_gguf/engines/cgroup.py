"""The limits of memory and CPU that a container or control group sets for its processes.

The limits of a group's parents apply, too; in a container only the group itself is visible, as
the root. Both versions of cgroups are read: docs of the kernel, admin-guide/cgroup-v1 and v2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from llama_gguf.values import Value

_UNLIMITED_BYTES = 1 << 60
"""Version 1 represents "no limit" by a number near the largest of 64 bits."""


class Limits(Value):
    """The effective limits; None where there is none."""

    memory: int | None
    """Bytes: the lowest limit that applies."""
    memory_left: int | None
    """Bytes that may still be allocated; cached file pages count as free."""
    cpus: float | None


def look(root: str = "/") -> Limits:
    """Read the limits that apply to this process.

    Args:
        root: the folder with proc and sys, for tests.
    """
    memory = [found for folder in _folders(root, "memory") if (found := _memory(folder))]
    cpus = [share for folder in _folders(root, "cpu") if (share := _cpus(folder))]
    return Limits(
        memory=min((limit for limit, _ in memory), default=None),
        memory_left=min((remaining for _, remaining in memory), default=None),
        cpus=min(cpus, default=None),
    )


def _folders(root: str, controller: str) -> Iterator[str]:
    """The group's folder and those of its parents, as far as they are visible."""
    for line in _text(os.path.join(root, "proc/self/cgroup")).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = os.path.join(root, "sys/fs/cgroup", controller if controllers else "")
        names = [name for name in path.split("/") if name not in ("", "..")]
        for depth in range(len(names), -1, -1):
            yield os.path.join(base, *names[:depth])


def _memory(folder: str) -> tuple[int, int] | None:
    """The limit and what remains of it."""
    limit = _number(folder, "memory.max") or _number(folder, "memory.limit_in_bytes")
    used = _number(folder, "memory.current") or _number(folder, "memory.usage_in_bytes")
    if limit is None or limit >= _UNLIMITED_BYTES:
        return None
    rows = (line.split() for line in _text(os.path.join(folder, "memory.stat")).splitlines())
    stat: Mapping[str, str] = {row[0]: row[1] for row in rows if len(row) == 2}
    cached = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
    return limit, max(0, min(limit, limit - (used or 0) + cached))


def _cpus(folder: str) -> float | None:
    words = _text(os.path.join(folder, "cpu.max")).split()
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota, period = _number(folder, "cpu.cfs_quota_us"), _number(folder, "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _number(folder: str, name: str) -> int | None:
    text = _text(os.path.join(folder, name)).strip()
    return int(text) if text.isdecimal() else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
