from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_gguf.telemetry import history_store
from llama_gguf.telemetry.history_store import HistoryStore
from llama_gguf.telemetry.timeseries import DEFAULT_RANGE, STEP_SECONDS, History, Reading


def some_history() -> History:
    history = History(1000.0)
    history.note("start", "The gateway started", 1000.0)
    history.take(Reading(10, 20, 30, {"queue_full": 1}, 2, 3, (0.5,)), 1000.0 + STEP_SECONDS)
    return history


def loaded(path: Path, now: float = 1060.0) -> History:
    history = History(now)
    HistoryStore(str(path)).load(history)
    return history


def test_a_history_continues_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "history" / "0.json"
    HistoryStore(str(path)).write_last(some_history(), within_seconds=10)
    history = loaded(path)

    assert history.series()["requests_per_second"] == [2.0]
    assert history.series()["first_token_p50"] == [0.5]
    assert history.errors() == {"queue_full": 1}
    assert [event["text"] for event in history.events()] == ["The gateway started"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["0.json"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b'{"form":2}', b'{"form":1,"steps":{},"events":[]}'),
        b'{"form":1,"steps":{"5":[[1]],"20":[],"120":[],"480":[]},"events":[]}',
        b'{"form":1,"steps":{"5":[],"20":[],"120":[],"480":[]},"events":[[NaN,"a","b"]]}',
        b"[" * 100_000,
    ],
)
def test_a_corrupt_file_is_ignored_with_one_line_and_replaced(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "0.json"
    path.write_bytes(content)
    history = loaded(path)

    assert history.series()["times"] == []
    assert [record.__dict__["event"] for record in caplog.records] == ["history_not_loaded"]
    HistoryStore(str(path)).write_last(some_history(), within_seconds=10)
    assert loaded(path).series()["requests_per_second"] == [2.0]


def test_a_restart_costs_a_long_range_no_step(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    HistoryStore(str(path)).write_last(some_history(), within_seconds=10)

    assert loaded(path).series(86400)["requests_per_second"] == [2.0]


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    store, history = HistoryStore(str(path)), some_history()
    store.write_last(history, within_seconds=10)
    path.unlink()
    store.write_last(history, within_seconds=10)
    HistoryStore(str(path)).write_last(History(0.0), within_seconds=10)

    assert not path.exists()


def test_a_missing_file_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert loaded(tmp_path / "0.json").series(DEFAULT_RANGE)["times"] == []
    assert caplog.records == []


def test_steps_from_the_future_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    HistoryStore(str(path)).write_last(some_history(), within_seconds=10)

    assert loaded(path, now=990.0).series()["times"] == []


def test_a_file_that_cannot_be_written_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = HistoryStore(os.fspath(tmp_path / "file" / "0.json"))
    for _ in range(3):
        store.write(some_history().snapshot())

    assert [record.__dict__["event"] for record in caplog.records] == ["history_not_kept"]


def test_the_largest_history_can_be_read_again(tmp_path: Path) -> None:
    history = History(0.0)
    reasons = {f"reason_{n:02}": 10**9 for n in range(100)}
    for n in range(1, 20_000):
        errors = {reason: n * count for reason, count in reasons.items()} if n % 40 == 0 else {}
        history.take(Reading(n, n, n, errors, 1, 1, (0.1,) * 300), n * STEP_SECONDS)
    for _ in range(300):
        history.note("crash", "é" * 1000, 20_000.0 * STEP_SECONDS)
    path = tmp_path / "0.json"
    HistoryStore(str(path)).write_last(history, within_seconds=60)

    assert path.stat().st_size < history_store.MAX_FILE_BYTES
    assert len(loaded(path, now=1e6).series(86400)["times"]) <= 181
