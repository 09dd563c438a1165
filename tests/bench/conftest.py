from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bench_engine import Engine, running


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running() as started:
        yield started
