from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from llama_gguf.config.schema import LogSettings
from llama_gguf.supervisor import boot_log
from llama_gguf.supervisor.boot_log import BootLog

_log = logging.getLogger("llama_gguf.somewhere")
_engine = logging.getLogger("llama-server")


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def settings(folder: Path, **chosen: object) -> LogSettings:
    return LogSettings(log_dir=str(folder), instance_id="box", **chosen)  # type: ignore[arg-type]


def boot_logs(folder: Path) -> list[Path]:
    return sorted((folder / "_boot").glob("*_boot_box.log"))


def test_lines_logged_while_it_is_open_are_in_the_file_that_latest_names(tmp_path: Path) -> None:
    _log.info("before")
    with BootLog(settings(tmp_path)):
        _log.info("%d things happen", 2)
    _log.info("after")

    (path,) = boot_logs(tmp_path)
    assert "2 things happen" in path.read_text()
    assert "before" not in path.read_text()
    assert "after" not in path.read_text()
    assert (tmp_path / "_boot" / "latest.txt").read_text() == f"{path}\n"
    assert sorted(p.name for p in (tmp_path / "_boot").iterdir()) == [path.name, "latest.txt"]


def test_the_engines_lines_are_only_in_the_engines_log(tmp_path: Path) -> None:
    with BootLog(settings(tmp_path)):
        _engine.info("of the engine")
        _log.info("ours")

    assert "of the engine" not in boot_logs(tmp_path)[0].read_text()


def test_a_file_that_was_moved_away_is_created_again(tmp_path: Path) -> None:
    with BootLog(settings(tmp_path)) as boot_log:
        (tmp_path / "_boot").mkdir(exist_ok=True)
        boot_log.reopen()
        _log.info("later")

    assert "later" in boot_logs(tmp_path)[0].read_text()


@pytest.mark.parametrize("work", ["prune", "_name_latest"])
def test_a_disk_that_hangs_does_not_delay_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    looked: list[threading.Thread] = []
    monkeypatch.setattr(boot_log, work, lambda *_, **__: looked.append(threading.current_thread()))

    with BootLog(settings(tmp_path)):
        pass

    assert threading.main_thread() not in looked
    assert len(looked) == 1


def test_a_folder_that_cannot_be_written_is_reported_once_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_boot").write_text("a file where the folder should be")

    with BootLog(settings(tmp_path)):
        _log.info("one")
        _log.info("two")

    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"The boot log {tmp_path}/_boot/")


def test_a_faulty_message_costs_only_its_own_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = logging.LogRecord("llama_gguf.x", logging.INFO, "", 0, "%d things", ("no",), None)
    with BootLog(settings(tmp_path)) as boot_log:
        boot_log.handle(record)
        _log.info("later")

    assert "later" in boot_logs(tmp_path)[0].read_text()
    assert "--- Logging error ---" in capsys.readouterr().err
