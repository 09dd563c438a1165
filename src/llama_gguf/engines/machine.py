"""Facts about the machine: GPU, memory, disk. For the boot log, `check` and `diagnose`."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import Final

from llama_gguf.engines import cgroup
from llama_gguf.files.programs import find_program
from llama_gguf.values import Value

_NVIDIA_SMI_SECONDS: Final = 10.0


class Machine(Value):
    """Sizes in bytes; None if unknown. In a container, its limits are those of the machine."""

    system: str
    cpus: int
    cores: int
    """Of the whole machine, also those that this process may not use: llama-server starts as many
    threads."""
    cpu_limit: float | None
    """The number of CPUs that may be used at once; None for all."""
    memory_total: int | None
    memory_available: int | None
    gpus: tuple[str, ...]

    @property
    def thread_limit(self) -> int:
        """The threads that can run at once, if llama-server would start more; else 0.

        It ignores the limits of containers. Its threads wait for each other, so that with one more
        than can run, all of them wait: with half of the CPUs, it was four times slower.
        """
        possible = self.cpus if self.cpu_limit is None else min(self.cpus, int(self.cpu_limit))
        return max(1, possible) if possible < self.cores else 0

    @property
    def cpu_text(self) -> str:
        limit = self.thread_limit
        return f"{self.cpus}; {limit} can be used at once" if limit else str(self.cpus)

    @property
    def gpu_text(self) -> str:
        return "; ".join(self.gpus) if self.gpus else "none found: CPU mode"


def look(path: str) -> Machine:
    """Collect the facts.

    Args:
        path: the PATH to search for nvidia-smi.
    """
    memory, limits, system = _meminfo(), cgroup.look(), os.uname()
    return Machine(
        system=f"{system.sysname} {system.release} {system.machine}",
        cpus=_cpus(),
        cores=_cores(),
        cpu_limit=limits.cpus,
        memory_total=_least(memory.get("MemTotal"), limits.memory),
        memory_available=_least(memory.get("MemAvailable"), limits.memory_left),
        gpus=_nvidia_gpus(path),
    )


def _cpus() -> int:
    """The CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # not Linux


def _cores(root: str = "/sys/devices/system/cpu") -> int:
    """The number of cores, counted as llama-server counts them: by sets of sibling threads."""
    siblings = set()
    for name in os.listdir(root) if os.path.isdir(root) else ():
        # Other entries, such as cpufreq, have no such file.
        path = f"{root}/{name}/topology/thread_siblings"
        with suppress(OSError), open(path, encoding="ascii") as file:
            siblings.add(file.read())
    return len(siblings) or os.cpu_count() or 1


def _least(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def free_disk(folder: str) -> int | None:
    """Free bytes on the file system of *folder*, which need not exist yet."""
    while folder and not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    found = os.statvfs(folder or ".")
    return found.f_bavail * found.f_frsize


def _meminfo() -> dict[str, int]:
    """Sizes of proc(5)'s meminfo, in bytes."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            rows = [line.split() for line in f]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _nvidia_gpus(path: str) -> tuple[str, ...]:
    program = find_program("nvidia-smi", path)
    if program is None:
        return ()
    query = ["--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(
            [program, *query],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_NVIDIA_SMI_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in result.stdout.splitlines() if line.strip())
