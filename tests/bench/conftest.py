from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.engine import Engine, running


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running() as started:
        yield started
