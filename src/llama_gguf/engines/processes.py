"""The machine's processes, from proc(5): their parents and listening sockets."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_OURS: Final = re.compile(r"llama[-_](?:gguf|server)")
_LISTEN: Final = "0A"


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    name: str
    state: str
    threads: int
    memory: int
    """Resident bytes."""
    cpu_seconds: float
    argv: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to `serve`."""
        return any(_OURS.search(word) for word in self.argv[:4])


def look(proc: str = "/proc") -> dict[int, Process]:
    """Every visible process; none where there is no proc(5)."""
    found = {}
    for name in os.listdir(proc) if os.path.isdir(proc) else ():
        if name.isdecimal():
            with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                found[int(name)] = _read(os.path.join(proc, name), int(name))
    return found


def _read(folder: str, pid: int) -> Process:
    with open(os.path.join(folder, "stat"), encoding="utf-8", errors="replace") as file:
        start, _, rest = file.read().rpartition(")")
    with open(os.path.join(folder, "cmdline"), encoding="utf-8", errors="surrogateescape") as file:
        words = file.read().removesuffix("\0").split("\0")
    fields = rest.split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        name=start.partition("(")[2],
        state=fields[0],
        threads=int(fields[17]),
        memory=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        argv=tuple(words) if words != [""] else (),
    )


def family(processes: Mapping[int, Process]) -> Iterator[tuple[int, Process]]:
    """Our processes, their ancestors and descendants, in tree order, each with its depth."""
    kept: set[int] = set()
    for pid, process in processes.items():
        above = list(_ancestors(process, processes))
        if process.is_ours:
            kept |= {pid, *(p.pid for p in above)}
        elif any(p.is_ours for p in above):
            kept.add(pid)
    for root in sorted(pid for pid in kept if processes[pid].parent not in kept):
        yield from _tree(root, processes, kept, depth=0)


def _ancestors(process: Process, processes: Mapping[int, Process]) -> Iterator[Process]:
    while process.parent in processes:
        process = processes[process.parent]
        yield process


def _tree(
    pid: int, processes: Mapping[int, Process], kept: set[int], *, depth: int
) -> Iterator[tuple[int, Process]]:
    yield depth, processes[pid]
    for child in sorted(p for p in kept if processes[p].parent == pid):
        yield from _tree(child, processes, kept, depth=depth + 1)


def environ_of(pid: int, proc: str = "/proc") -> dict[str, str]:
    """The environment with which *pid* was started; empty if we may not read it."""
    try:
        with open(
            os.path.join(proc, str(pid), "environ"), encoding="utf-8", errors="surrogateescape"
        ) as file:
            pairs = file.read().split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def directory_of(pid: int, proc: str = "/proc") -> str:
    """The current directory of *pid*; empty if we may not read it."""
    try:
        return os.readlink(os.path.join(proc, str(pid), "cwd"))
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that accepts connections."""

    address: str
    port: int
    pid: int | None
    """None if we may not read it."""


def listeners(pids: Iterable[int], proc: str = "/proc") -> list[Listener]:
    """Every TCP socket that accepts connections, with its process if it is one of *pids*."""
    owners = {inode: pid for pid in pids for inode in _sockets_of(pid, proc)}
    found = []
    for name in ("tcp", "tcp6"):
        for fields in _rows(os.path.join(proc, "net", name)):
            if len(fields) > 9 and fields[3] == _LISTEN:
                address, _, port = fields[1].partition(":")
                pid = owners.get(fields[9])
                found.append(Listener(_address(address), int(port, 16), pid))
    return sorted(found, key=lambda one: (one.port, one.address))


def _rows(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return [line.split() for line in file]
    except OSError:
        return []


def _address(text: str) -> str:
    # Words of 32 bits in the machine's byte order.
    raw = bytes.fromhex(text)
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return socket.inet_ntop(
        socket.AF_INET if len(raw) == 4 else socket.AF_INET6, struct.pack(f">{len(words)}I", *words)
    )


def _sockets_of(pid: int, proc: str) -> Iterator[str]:
    folder = os.path.join(proc, str(pid), "fd")
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(os.path.join(folder, name)))
                if match:
                    yield match[1]
