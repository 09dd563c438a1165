"""What all engines share of the prompt cache: validity, digests, and reports."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from llama_gguf.prompt_cache.entry import Entry
from llama_gguf.supervisor import prompts
from tests.prompt_cache.states import state
from tests.supervisor.slots import Box
from tests.support.virtual_time import run

A = "a" * 16


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_a_model_is_valid_once_its_digest_is_known(box: Box) -> None:
    async def scenario() -> None:
        source = box.source()
        assert await box.cache.validity(source) is None
        box.cache.compute_digest(source)
        await asyncio.sleep(1)
        known = await box.cache.validity(source)
        assert known is not None
        assert known != await box.cache.validity(box.source(build="b2"))
        box.serve()
        assert await box.cache.validity(source) == known  # remembered

    run(lambda _: scenario())


def test_the_digest_of_a_file_that_changes_while_it_is_read_is_not_kept(box: Box) -> None:
    async def scenario() -> None:
        source = box.source()
        box.model.write_bytes(b"other weights")
        box.cache.compute_digest(source)
        await asyncio.sleep(1)
        assert await box.cache.validity(source) is None
        assert await box.cache.validity(box.source()) is None

    run(lambda _: scenario())


def test_a_model_that_cannot_be_read_is_reported_once(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        source = box.source()
        box.model.unlink()
        box.cache.compute_digest(source)
        await asyncio.sleep(1)

    run(lambda _: scenario())
    assert caplog.text.count("the model cannot be read") == 1


def test_a_verdict_is_known_to_check_as_well(box: Box) -> None:
    async def scenario() -> None:
        source = box.source()
        assert prompts.known_verdict(source, box.store.noted) is None
        box.cache.compute_digest(source)
        await asyncio.sleep(1)
        valid = await box.cache.validity(source)
        assert valid is not None
        await box.cache.note_verdict(valid, helps=False)
        assert prompts.known_verdict(source, box.store.noted) is False

    run(lambda _: scenario())


def test_the_size_of_the_next_one_is_estimated_by_the_last(box: Box) -> None:
    async def scenario() -> None:
        data = state(range(1000))
        assert await box.cache.begin(A, 1000, 1.0) == f"{A}.saving"
        (box.folder / f"{A}.saving").write_bytes(data)
        assert await box.cache.commit(Entry(A, "v", 1000, len(data), 1.0, ("ann:1",)))
        assert await box.cache.begin("b", 10**9, 1.0) is None  # more than PROMPT_CACHE_SIZE

    run(lambda _: scenario())
    assert os.listdir(box.folder) != []
