"""Tests that start processes are marked `processes`, so that `make test-fast` can omit them.

A pytest plugin: the rooms of ``ROOMS`` are marked as a whole, others have the mark on modules or
tests. A test without the mark fails if it starts a process.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

ROOMS: Final = frozenset({"e2e", "hostile", "soak", "wire"})
TESTS: Final = Path(__file__).parents[1]
STARTS: Final = frozenset(
    {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec"}
)
"""The audit events of CPython that precede a new process or program."""


class Guard:
    """Whether the current test may start processes."""

    is_closed = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_closed and event in STARTS:
            raise AssertionError(f"{event} in a test without @pytest.mark.processes")


guard: Final = Guard()
sys.addaudithook(guard)


@pytest.hookimpl(tryfirst=True)  # before the marks select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in ROOMS:
            item.add_marker(pytest.mark.processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    guard.is_closed = item.get_closest_marker("processes") is None
    try:
        return (yield)
    finally:
        guard.is_closed = False
