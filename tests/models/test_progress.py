from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.progress import watching


def test_the_meter_reports_the_largest_file_while_it_grows(tmp_path: Path) -> None:
    ticks: list[tuple[int, int | None]] = []
    half_seen = threading.Event()

    def meter(done: int, total: int | None) -> None:
        ticks.append((done, total))
        if done == 50:
            half_seen.set()

    with watching(str(tmp_path), meter, 100):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "wheel").write_bytes(bytes(50))
        (tmp_path / "small").write_bytes(bytes(20))
        assert half_seen.wait(30)

    assert ticks[0] == (0, 100)
    assert (50, 100) in ticks
    assert ticks[-1] == (100, 100)


def test_a_failed_download_is_not_reported_as_complete(tmp_path: Path) -> None:
    ticks: list[int] = []

    with (
        pytest.raises(UserError),
        watching(str(tmp_path), lambda done, total: ticks.append(done), 100),
    ):
        raise UserError("broke")

    assert 100 not in ticks
