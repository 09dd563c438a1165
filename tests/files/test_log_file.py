from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from llama_gguf.files.log_file import LogFile

WHAT: Final = "access log"


def log_at(path: Path, *, max_bytes: int = 0, backups: int = 0) -> LogFile:
    return LogFile(str(path), WHAT, max_bytes=max_bytes, backups=backups)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def texts_in(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_lines_are_appended_to_a_file_whose_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.log"
    log = log_at(path)
    log.write(b"one\n")
    log.write(b"two\nthree\n")
    log.close()

    assert path.read_text() == "one\ntwo\nthree\n"
    assert path.stat().st_mode & 0o007 == 0, "nothing for others to read"


def test_the_file_is_created_at_the_first_write(path: Path) -> None:
    log_at(path).close()

    assert not path.exists()


def test_after_closing_lines_go_to_the_file_that_has_the_path(path: Path, tmp_path: Path) -> None:
    log = log_at(path)
    log.write(b"before\n")
    path.rename(tmp_path / "old")
    log.close()
    log.write(b"behind\n")
    log.close()

    assert texts_in(tmp_path) == {"a.log": "behind\n", "old": "before\n"}


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_was_moved_away_is_noticed(
    is_replaced: bool, path: Path, tmp_path: Path
) -> None:
    log = log_at(path)
    log.write(b"before\n")
    path.rename(tmp_path / "old")
    if is_replaced:
        path.touch()
    log.write(b"behind\n")
    log.close()

    assert texts_in(tmp_path) == {"a.log": "behind\n", "old": "before\n"}


def test_a_full_file_is_set_aside_and_the_oldest_goes(path: Path, tmp_path: Path) -> None:
    log = log_at(path, max_bytes=10, backups=2)
    for line in (b"first\n", b"1\n", b"second\n", b"third\n", b"fourth\n"):
        log.write(line)
    log.close()

    assert texts_in(tmp_path) == {"a.log": "fourth\n", "a.log.1": "third\n", "a.log.2": "second\n"}


def test_lines_that_fill_the_file_exactly_still_go_into_it(path: Path, tmp_path: Path) -> None:
    log = log_at(path, max_bytes=8, backups=1)
    for line in (b"123\n", b"567\n", b"9\n"):
        log.write(line)
    log.close()

    assert texts_in(tmp_path) == {"a.log": "9\n", "a.log.1": "123\n567\n"}


def test_lines_that_are_longer_than_a_file_may_be_get_one_of_their_own(
    path: Path, tmp_path: Path
) -> None:
    log = log_at(path, max_bytes=4, backups=2)
    for line in (b"1\n", b"much longer\n", b"2\n"):
        log.write(line)
    log.close()

    assert texts_in(tmp_path) == {"a.log": "2\n", "a.log.1": "much longer\n", "a.log.2": "1\n"}


def test_the_size_of_an_existing_file_counts(path: Path, tmp_path: Path) -> None:
    path.write_text("from before\n")
    log = log_at(path, max_bytes=15, backups=1)
    log.write(b"more\n")
    log.close()

    assert texts_in(tmp_path) == {"a.log": "more\n", "a.log.1": "from before\n"}


def test_without_backups_a_full_file_starts_empty(path: Path, tmp_path: Path) -> None:
    log = log_at(path, max_bytes=10)
    log.write(b"12345678\n")
    log.write(b"2\n")
    log.close()

    assert texts_in(tmp_path) == {"a.log": "2\n"}


def test_of_two_writers_the_second_follows_when_the_first_sets_the_file_aside(
    path: Path, tmp_path: Path
) -> None:
    first, second = (log_at(path, max_bytes=10, backups=5) for _ in range(2))
    second.write(b"second\n")
    first.write(b"first\n")  # the file is full
    second.write(b"2\n")
    first.close()
    second.close()

    assert texts_in(tmp_path) == {"a.log": "first\n2\n", "a.log.1": "second\n"}


def test_a_file_that_cannot_be_set_aside_grows_on(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.log.1" / "in the way").mkdir(parents=True)
    log = log_at(path, max_bytes=4, backups=1)
    log.write(b"one\n")
    log.write(b"two\n")
    log.close()

    assert path.read_text() == "one\ntwo\n"


def test_a_file_that_cannot_be_written_is_complained_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    log = log_at(tmp_path / "file" / "a.log")
    with caplog.at_level(logging.WARNING):
        log.write(b"one\n")
        log.write(b"two\n")

    assert caplog.text.count("cannot be written") == 1
    assert f"{WHAT} {tmp_path}/file/a.log" in caplog.text


def test_a_new_failure_is_logged_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.log"
    log = log_at(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            path.mkdir()
            log.write(b"lost\n")
            path.rmdir()
            log.write(b"written\n")
            path.unlink()
    log.close()

    assert caplog.text.count("cannot be written") == 2


_FULL_DISK: Final = """\
import resource, signal, sys
from llama_gguf.files.log_file import LogFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
log = LogFile(sys.argv[1], "log")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
log.write(b"one\\n")
log.write(b"two is longer\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.write(b"three\\n")
"""


@pytest.mark.processes
def test_a_line_that_a_full_disk_has_cut_does_not_run_into_the_next(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, os.fspath(path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "cannot be written" in done.stderr
    assert path.read_text() == "one\ntwo is\nthree\n"
