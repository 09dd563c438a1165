"""The progress of a download, as it is reported to a meter."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

Meter = Callable[[int, int | None], None]
"""Called with the bytes done and the total, which is None while unknown."""
MeterFactory = Callable[[str], AbstractContextManager[Meter]]
"""Makes the meter of a download with this label."""

_REPORT_SECONDS: Final = 0.2


@contextmanager
def watching(folder: str, meter: Meter, total: int | None) -> Iterator[None]:
    """Report the progress of a download that other code writes to a file below *folder*."""
    finished = threading.Event()

    def report() -> None:
        while not finished.wait(_REPORT_SECONDS):
            meter(largest_file(folder), total)

    meter(0, total)
    thread = threading.Thread(target=report, name="meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    if total is not None:
        meter(total, total)


def largest_file(folder: str) -> int:
    """Size of the largest file below *folder*.

    The largest and not the sum: for a moment, pip has two copies of the wheel.
    """
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
    return largest
