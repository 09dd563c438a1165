from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.gateway.gpu_reader import EVERY_SECONDS, GpuReader
from tests.support.fakes import Clock, FakeLoop


def program_in(folder: Path) -> Path:
    """It notes each of its runs."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho x >> {folder}/runs\necho 0, L4, 1, 2, 3\n")
    program.chmod(0o700)
    return program


async def settled(reader: GpuReader) -> None:
    assert reader._reading is not None
    await reader._reading


@pytest.mark.processes
def test_the_program_runs_rarely_and_only_while_someone_looks(tmp_path: Path) -> None:
    async def run() -> None:
        reader = GpuReader(asyncio.get_running_loop(), lambda: str(program_in(tmp_path)))
        assert reader.view(100.0) == []
        await settled(reader)
        shown = reader.view(100.0 + EVERY_SECONDS / 2)

        assert [gpu["total"] for gpu in shown] == [2 << 20]
        assert (tmp_path / "runs").read_text() == "x\n"
        reader.view(100.0 + EVERY_SECONDS)
        await settled(reader)
        assert (tmp_path / "runs").read_text() == "x\nx\n"

    asyncio.run(run())


def test_without_the_program_nothing_runs() -> None:
    looked: list[bool] = []

    def find() -> None:
        looked.append(True)

    with closing(FakeLoop(Clock())) as loop:
        reader = GpuReader(loop, find)

        assert [reader.view(0.0), reader.view(1000.0)] == [[], []]
        assert looked == [True]
        assert reader._reading is None
