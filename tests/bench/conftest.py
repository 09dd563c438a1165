from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engines import ChatEngine, running


@pytest.fixture
def engine() -> Iterator[ChatEngine]:
    with running() as started:
        yield started
