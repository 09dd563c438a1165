from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest

from llama_gguf.core.settings import Settings, load, resolve
from llama_gguf.supervisor.engine_log import EngineLog


def settings(data: Path, **variables: str) -> Settings:
    loaded = load({"DATA_DIR": str(data), "INSTANCE_ID": "box-7", **variables})
    return resolve(loaded.settings, lambda path: False, "unused")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_each_start_has_a_file_named_by_time_and_instance(tmp_path: Path) -> None:
    log = EngineLog(settings(tmp_path))
    log.close()

    path = Path(log.path)
    assert path.parent == tmp_path / "logs" / "llama"
    assert path.name.endswith("Z_server_box-7.log")
    assert path.exists()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"LOG_NAME": "mine"}, "mine"),
        ({"WORKER_TYPE": "chat"}, "llama-chat"),
        ({"WORKER_TYPE": "chat", "LOG_NAME": "mine"}, "llama-chat"),
    ],
)
def test_the_folder_is_named_by_the_kind_of_worker_or_else_by_log_name(
    tmp_path: Path, variables: dict[str, str], folder: str
) -> None:
    log = EngineLog(settings(tmp_path, **variables))
    log.close()

    assert Path(log.path).parent.name == folder


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = EngineLog(settings(tmp_path))
    log.write("loading ä")
    try:
        assert Path(log.path).read_text("utf-8") == "loading ä\n"
    finally:
        log.close()


def test_two_starts_in_one_second_lose_nothing(tmp_path: Path) -> None:
    first, second = EngineLog(settings(tmp_path)), EngineLog(settings(tmp_path))
    first.write("first")
    second.write("second")
    first.close()
    second.close()

    written = [f.read_text("utf-8") for f in sorted((tmp_path / "logs" / "llama").iterdir())]
    assert "".join(written) == "first\nsecond\n"


def test_a_folder_that_cannot_be_made_is_warned_of_once_and_lines_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "llama").write_text("a file where the folder should be")

    log = EngineLog(settings(tmp_path))
    log.write("one")
    log.write("two")
    log.close()

    assert warnings_in(caplog) == [f"the engine's log {log.path} cannot be written: File exists"]


def test_a_full_disk_is_warned_of_once_and_lines_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EngineLog(settings(tmp_path))
    log.close()
    log._file = open("/dev/full", "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    log.write("one")
    log.write("two")
    log.close()

    assert warnings_in(caplog) == [
        f"the engine's log {log.path} cannot be written: No space left on device"
    ]
    gc.collect()  # a file that was dropped without being closed would warn


def test_a_closed_log_takes_no_more_lines(tmp_path: Path) -> None:
    log = EngineLog(settings(tmp_path))
    log.write("one")
    log.close()
    log.write("two")
    log.close()

    assert Path(log.path).read_text("utf-8") == "one\n"
