from __future__ import annotations

import os
from pathlib import Path

from llama_gguf.config.settings import Settings
from llama_gguf.gateway import engine_log


def logs_in(folder: Path) -> Settings:
    return Settings.of(log_dir=str(folder), instance_id="7")


def write_log(folder: Path, name: str, text: str, *, at: float) -> None:
    settings = logs_in(folder).logs
    path = folder / settings.log_name / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))


def test_the_end_of_the_newest_log_of_this_instance_is_shown(tmp_path: Path) -> None:
    write_log(tmp_path, "20260101T000000Z_server_7.log", "old\n", at=1)
    write_log(tmp_path, "20260102T000000Z_server-1_7.log", "one\ntwo\n", at=3)
    write_log(tmp_path, "20260103T000000Z_server_8.log", "another's\n", at=4)
    write_log(tmp_path, "20260103T000000Z_boot_7.log", "boot\n", at=5)

    assert engine_log.tail(logs_in(tmp_path).logs)["lines"] == ["one", "two"]


def test_a_long_log_is_cut_at_the_start_of_a_line(tmp_path: Path) -> None:
    lines = [f"line {n} {'x' * 1000}" for n in range(1000)]
    write_log(tmp_path, "20260101T000000Z_server_7.log", "\n".join(lines), at=1)
    shown = engine_log.tail(logs_in(tmp_path).logs)["lines"]

    assert isinstance(shown, list)
    assert shown == lines[-len(shown) :]
    assert 10 < len(shown) <= engine_log.MAX_LINES


def test_without_a_log_nothing_is_shown(tmp_path: Path) -> None:
    assert engine_log.tail(logs_in(tmp_path / "none").logs) == {"file": "", "lines": []}
