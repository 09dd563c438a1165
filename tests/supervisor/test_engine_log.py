from __future__ import annotations

import contextvars
import logging
import threading
from pathlib import Path

import pytest

from llama_gguf import events
from llama_gguf.config.load import load
from llama_gguf.config.platform import resolve
from llama_gguf.config.schema import LogSettings
from llama_gguf.supervisor import engine_log
from llama_gguf.supervisor.engine_log import open_engine_log

SECONDS = 10.0


def settings(data: Path, **variables: str) -> LogSettings:
    loaded = load({"DATA_DIR": str(data), "INSTANCE_ID": "box-7", **variables})
    return resolve(
        loaded.settings,
        environ={},
        is_dir=lambda path: False,
        is_writable=lambda path: True,
        host_name="unused",
    ).logs


def write(chosen: LogSettings, *lines: str) -> Path:
    log = open_engine_log(chosen)
    for line in lines:
        log.write(line)
    log.close(SECONDS)
    return Path(log.file.path)


def test_each_start_has_a_file_named_by_time_and_instance(tmp_path: Path) -> None:
    path = write(settings(tmp_path), "loading ä")

    assert path.parent == tmp_path / "logs" / "llama"
    assert path.name.endswith("Z_server_box-7.log")
    assert path.read_text("utf-8") == "loading ä\n"


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
    assert write(settings(tmp_path, **variables), "x").parent.name == folder


def test_two_starts_in_the_same_second_lose_no_lines(tmp_path: Path) -> None:
    write(settings(tmp_path), "first")
    write(settings(tmp_path), "second")

    written = [f.read_text("utf-8") for f in sorted((tmp_path / "logs" / "llama").iterdir())]
    assert "".join(written) == "first\nsecond\n"


def test_its_lines_are_in_our_log_too_with_their_own_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="llama-server"):
        write(
            settings(tmp_path),
            "0.00.006.592 W srv  llama_server: a warning",
            "12.59.041.000 E srv  llama_server: an error",
            "0.00.000.001 D a detail",
            "0.00.000.001 I news",
            "",
            "  indented %s",
        )

    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "0.00.006.592 W srv  llama_server: a warning"),
        ("ERROR", "12.59.041.000 E srv  llama_server: an error"),
        ("DEBUG", "0.00.000.001 D a detail"),
        ("INFO", "0.00.000.001 I news"),
        ("INFO", "  indented %s"),
    ]
    assert {r.name for r in caplog.records} == {"llama-server"}


def test_what_it_warns_of_in_each_cached_prompt_is_no_warning_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual = "0.27.569.044 W slot   operator(): id  3 | task 10 | "
    lines = (
        usual + "need to evaluate at least 1 token for each active slot (n_past = 32)",
        usual + "n_past was set to 31",
    )
    with caplog.at_level(logging.INFO, logger="llama-server"):
        path = write(settings(tmp_path), *lines, usual + "something else")

    assert [r.levelname for r in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert path.read_text().count("\n") == 3


def test_a_disk_that_hangs_with_older_logs_does_not_delay_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[threading.Thread] = []
    monkeypatch.setattr(
        engine_log, "prune", lambda *_, **__: looked.append(threading.current_thread())
    )

    write(settings(tmp_path), "x")

    assert threading.main_thread() not in looked
    assert len(looked) == 1


def test_a_folder_that_cannot_be_created_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "llama").write_text("a file where the folder should be")

    path = write(settings(tmp_path), "one", "two")

    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [f"The engine log {path} cannot be written: File exists"]


def test_a_full_file_is_rotated_and_the_oldest_are_removed(tmp_path: Path) -> None:
    chosen = settings(tmp_path, LOG_MAX_BYTES="10", LOG_BACKUPS="2")

    path = write(chosen, *(f"line {n}" for n in range(9)))

    kept = {p.name.removeprefix(path.name): p.read_text() for p in path.parent.iterdir()}
    assert kept == {"": "line 8\n", ".1": "line 7\n", ".2": "line 6\n"}


def test_a_replica_has_its_files_and_a_mark_before_its_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write_of_second() -> Path:
        events.replica.set("1")
        log = open_engine_log(settings(tmp_path, LOG_BACKUPS="0"), "1")
        log.write("loading")
        log.close(SECONDS)
        return Path(log.file.path)

    with caplog.at_level(logging.INFO, logger="llama-server"):
        first = write(settings(tmp_path), "x")
        second = contextvars.copy_context().run(write_of_second)

    assert second.name.endswith("Z_server-1_box-7.log")
    assert second.read_text("utf-8") == "loading\n"
    assert first.exists()  # its backups are counted apart
    assert "[1] loading" in caplog.messages
