from __future__ import annotations

import asyncio
import logging
import stat
from pathlib import Path

import pytest

from llama_gguf.core.ledger import Ledger
from llama_gguf.core.settings import Settings
from llama_gguf.gateway import ledger_file
from llama_gguf.gateway.ledger_file import LedgerFile, path_of

NOW = 1_800_000_000.0
ONE = (1, 0, 10, 20, 5, 0)


def used(now: float = NOW) -> Ledger:
    ledger = Ledger(now)
    ledger.add("alice", ONE, now)
    return ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage" / "here.json"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_what_is_written_is_loaded_by_the_next_one(path: Path) -> None:
    ledger = used()
    LedgerFile(str(path)).write(ledger.dump())
    again = LedgerFile(str(path)).load(NOW + 1)

    assert again.views(NOW + 1) == ledger.views(NOW + 1)
    assert again.since == NOW
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["here.json"]


def test_where_there_is_no_file_counting_begins(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = LedgerFile(str(path)).load(NOW)

    assert (ledger.since, ledger.views(NOW), warnings(caplog)) == (NOW, [], [])


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":99}', b"\xff\xfe", b"[]"])
def test_a_file_that_cannot_be_read_is_set_aside_and_said(
    content: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    ledger = LedgerFile(str(path)).load(NOW)

    assert ledger.views(NOW) == []
    (warning,) = warnings(caplog)
    assert str(path) in warning
    assert path.with_name("here.json.unreadable").read_bytes() == content


def test_a_disk_that_cannot_be_written_is_said_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("a file where the folder should be")
    file = LedgerFile(str(path))
    file.write("one")
    file.write("two")
    path.parent.unlink()
    file.write("three")

    assert len(warnings(caplog)) == 1
    assert path.read_text() == "three"


def test_a_file_is_never_seen_half_written(path: Path) -> None:
    file = LedgerFile(str(path))
    file.write("old")
    path.with_name("here.json.new").mkdir()  # so that writing the new one fails
    file.write("new")

    assert path.read_text() == "old"


def test_it_is_kept_when_it_has_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "EVERY_SECONDS", 0.001)
    ledger = used()
    writes: list[str] = []
    written = asyncio.Event()
    file = LedgerFile(str(path))

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def write(text: str) -> None:
            writes.append(text)
            loop.call_soon_threadsafe(written.set)

        monkeypatch.setattr(file, "write", write)
        keeping = loop.create_task(file.keep(ledger))
        await written.wait()
        written.clear()
        ledger.add("bob", ONE, NOW)
        await written.wait()
        keeping.cancel()

    asyncio.run(run())

    assert ['"bob"' in text for text in writes] == [False, True]


def test_the_last_numbers_are_written_at_the_end(path: Path) -> None:
    ledger = used()
    LedgerFile(str(path)).write_last(ledger, within_seconds=15)

    assert LedgerFile(str(path)).load(NOW).views(NOW) == ledger.views(NOW)
    path.unlink()
    LedgerFile(str(path)).write_last(ledger, within_seconds=15)
    assert not path.exists(), "nothing has changed since"


@pytest.mark.parametrize(
    ("instance", "name"),
    [
        ("host-1.example", "host-1.example.json"),
        ("../../etc/passwd", "_.._etc_passwd.json"),
        ("...", "gateway.json"),
        ("", "gateway.json"),
        ("a b/ü", "a_b__.json"),
    ],
)
def test_each_instance_has_a_file_of_its_own_in_one_folder(instance: str, name: str) -> None:
    path = path_of(Settings(data_dir="/data", instance_id=instance))

    assert path == f"/data/usage/{name}"
