"""Fixtures for tests that run ``llama-gguf serve``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.serve import Serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Not started yet; its keys file has KEY."""
    serve = Serve(tmp_path)
    serve.add_key()
    yield serve
    serve.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For clients that wait while the test continues."""
    pool = ThreadPoolExecutor(8)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)
