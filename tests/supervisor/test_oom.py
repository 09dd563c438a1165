from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.supervisor import oom


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/pod/a", "sys/fs/cgroup/pod/a/memory.events", "oom 3\noom_kill 2\n"),
        ("0::/", "sys/fs/cgroup/memory.events", "oom 3\noom_kill 2\n"),
        ("0::/of/the/host", "sys/fs/cgroup/memory.events", "oom 3\noom_kill 2\n"),
        ("4:memory:/a", "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill 2\n"),
    ],
    ids=["v2", "v2-top", "v2-in-a-container", "v1"],
)
def test_the_kills_of_our_control_group_are_counted(
    tmp_path: Path, group: str, file: str, text: str
) -> None:
    for name, content in ((file, text), ("proc/self/cgroup", f"9:pids:/x\n{group}\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    assert oom.oom_kills(str(tmp_path)) == 2


def test_without_control_groups_there_are_none(tmp_path: Path) -> None:
    assert oom.oom_kills(str(tmp_path)) == 0


def test_the_kernels_log_is_searched_for_the_process(tmp_path: Path) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.write_text("6,1,1,-;Out of memory: Killed process 4711 (llama-server) total-vm:1kB\n")

    assert oom.kernel_names(4711, str(kmsg))
    assert not oom.kernel_names(471, str(kmsg))


def test_an_unreadable_kernel_log_is_no_evidence(tmp_path: Path) -> None:
    assert not oom.kernel_names(1, str(tmp_path / "nowhere"))


def test_reading_this_machines_files_raises_nothing() -> None:
    assert oom.oom_kills() >= 0
    assert not oom.kernel_names(2**30)


def test_one_kill_explains_one_death_of_several_engines() -> None:
    kills = 3
    count = oom.KillCount(lambda: kills)
    first, second = count.now(), count.now()
    assert not count.claim(first)

    kills = 4
    assert count.claim(second)
    assert not count.claim(first)

    kills = 6
    assert count.claim(first)
    assert count.claim(second)
    assert not count.claim(count.now())
