from __future__ import annotations

import os
from pathlib import Path

from llama_gguf.config.schema import LogSettings
from llama_gguf.files.retention import OTHERS_LIVE_SECONDS, latest, prune, stamped
from llama_gguf.values import replace

OURS = LogSettings(instance_id="box", log_backups=2)


def test_a_name_has_the_time_the_kind_and_the_instance(tmp_path: Path) -> None:
    name = os.path.basename(stamped(OURS, str(tmp_path), "server"))

    stamp, kind, instance = name.split("_")
    assert len(stamp) == len("20261122T045507Z")
    assert (kind, instance) == ("server", "box.log")


def make(folder: Path, *names: str, age: float = 0.0) -> None:
    """Files, each a little older than the previous one."""
    now = folder.stat().st_mtime - age
    for n, name in enumerate(names):
        (folder / name).touch()
        os.utime(folder / name, (now - n, now - n))


def test_the_oldest_beyond_the_number_of_backups_are_removed(tmp_path: Path) -> None:
    names = [f"2026112{n}T000000Z_server_box.log" for n in range(5, 0, -1)]
    make(tmp_path, *names)

    prune(OURS, str(tmp_path), "server", but=str(tmp_path / names[0]))

    assert sorted(os.listdir(tmp_path)) == sorted(names[:3])


def test_logs_that_another_instance_may_still_write_to_are_kept(tmp_path: Path) -> None:
    make(tmp_path, *(f"2026112{n}T000000Z_server_other.log" for n in range(5)))
    make(tmp_path, "20261101T000000Z_server_gone.log", age=OTHERS_LIVE_SECONDS + 60)

    prune(OURS, str(tmp_path), "server", but="")

    assert [n for n in os.listdir(tmp_path) if "gone" in n] == []
    assert len(os.listdir(tmp_path)) == 5


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    others = ["latest.txt", "20261122T000000Z_boot_box.log", "notes_server_box.txt"]
    make(tmp_path, *others)

    prune(replace(OURS, log_backups=0), str(tmp_path), "server", but="")

    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_a_missing_folder_needs_no_pruning(tmp_path: Path) -> None:
    prune(OURS, str(tmp_path / "nowhere"), "server", but="")


def test_the_latest_log_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    assert latest(str(tmp_path / "missing"), "server") is None
    assert latest(str(tmp_path), "server") is None
    make(tmp_path, "2_server_box.log", "3_server_box.log", "1_server-1_box.log")
    make(tmp_path, "9_boot_box.log", "9_server_box.log.1")

    assert latest(str(tmp_path), "server") == str(tmp_path / "2_server_box.log")
