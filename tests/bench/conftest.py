from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engines import ChatEngine


@pytest.fixture
def engine() -> Iterator[ChatEngine]:
    with ChatEngine() as started:
        yield started
