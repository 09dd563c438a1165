from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llama_gguf.files.line_writer import LogWriter
from llama_gguf.files.log_file import LogFile
from llama_gguf.files.writer_thread import JOB_BYTES

SECONDS = 10.0


def test_lines_are_written_in_order_and_echoed(tmp_path: Path) -> None:
    echoed: list[str] = []
    writer = LogWriter(LogFile(str(tmp_path / "log"), "log"), echoed.append)
    writer.start()
    for n in range(100):
        writer.write(f"line {n}")
    writer.close(SECONDS)

    assert (tmp_path / "log").read_text() == "".join(f"line {n}\n" for n in range(100))
    assert echoed == [f"line {n}" for n in range(100)]


def test_a_file_that_was_moved_away_is_created_again(tmp_path: Path) -> None:
    is_written = threading.Event()
    writer = LogWriter(LogFile(str(tmp_path / "log"), "log"), lambda line: is_written.set())
    writer.start()
    writer.write("before")
    assert is_written.wait(SECONDS)
    (tmp_path / "log").rename(tmp_path / "old")
    writer.reopen()
    writer.write("after")
    writer.close(SECONDS)

    assert (tmp_path / "old").read_text() == "before\n"
    assert (tmp_path / "log").read_text() == "after\n"


def test_a_disk_that_hangs_costs_bounded_memory_and_lines_that_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = 3 * (JOB_BYTES + len("line 0"))
    begun, may_end = threading.Event(), threading.Event()

    def hang(line: str) -> None:
        begun.set()
        may_end.wait(SECONDS)

    writer = LogWriter(LogFile(str(tmp_path / "log"), "log"), hang, max_waiting_bytes=room)
    writer.start()
    writer.write("first")
    assert begun.wait(SECONDS)
    for n in range(100):
        writer.write(f"line {n}")
    may_end.set()
    writer.close(SECONDS)

    assert (tmp_path / "log").read_text() == "first\nline 0\nline 1\nline 2\n"
    assert caplog.messages == [
        f"The log {tmp_path}/log could not be written for a time: 97 lines are lost"
    ]
