"""A server for tests of what is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serve import Serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Not started yet, and without keys."""
    (folder := tmp_path / "serve").mkdir()
    serve = Serve(folder)
    yield serve
    serve.end()
