from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.engines.cgroup import Limits, look

GIB = 1 << 30


def machine(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return str(folder)


def test_a_container_of_version_2(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": str(4 * GIB),
            "sys/fs/cgroup/memory.current": str(3 * GIB),
            "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {2 * GIB}",
            "sys/fs/cgroup/cpu.max": "150000 100000",
        },
    )

    assert look(root) == Limits(memory=4 * GIB, memory_left=3 * GIB, cpus=1.5)


def test_a_container_of_version_1(tmp_path: Path) -> None:
    # The path is that of the host, and does not exist in the container.
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 7",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )

    assert look(root) == Limits(memory=2 * GIB, memory_left=GIB + 7, cpus=0.5)


def test_the_limits_of_the_parents_apply_too(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice/llama.service"
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/llama.service",
            f"{group}/memory.max": str(8 * GIB),
            f"{group}/memory.current": str(GIB),
            f"{group}/cpu.max": "max 100000",
            "sys/fs/cgroup/system.slice/memory.max": str(16 * GIB),
            "sys/fs/cgroup/system.slice/memory.current": str(14 * GIB),
        },
    )

    assert look(root) == Limits(memory=8 * GIB, memory_left=2 * GIB, cpus=None)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": ""},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"},
        {
            "proc/self/cgroup": "4:memory:/\n5:cpu:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    ],
    ids=["nothing", "no-groups", "max", "the-largest-number"],
)
def test_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert look(machine(tmp_path, files)) == Limits(memory=None, memory_left=None, cpus=None)


def test_a_group_over_its_limit_has_no_memory_available(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": "5",
            "sys/fs/cgroup/memory.current": "9",
        },
    )

    assert look(root).memory_left == 0


def test_this_machine_can_be_read() -> None:
    limits = look()

    assert limits.memory is None or limits.memory > 0
