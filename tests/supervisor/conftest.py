"""Fixtures for tests that run ``llama-gguf serve``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.displays import FakeDisplay
from tests.support.gguf_files import gguf
from tests.support.processes import free_ports
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


@pytest.fixture
def display() -> FakeDisplay:
    return FakeDisplay()


@pytest.fixture
def startable(tmp_path: Path) -> dict[str, object]:
    """Settings with which it could start."""
    port, port_health, port_backend = free_ports(3)
    model = tmp_path / "m.gguf"
    model.write_bytes(gguf())
    return {
        "data_dir": str(tmp_path),
        "log_dir": str(tmp_path / "logs"),
        "model_path": str(model),
        "llama_server": "/bin/true",
        "port": port,
        "port_health": port_health,
        "port_backend": port_backend,
    }
