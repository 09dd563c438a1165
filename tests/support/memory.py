"""The memory that work leaves allocated, for tests that it stays bounded."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable


def allocated_bytes(work: Callable[[], object]) -> int:
    """The bytes that Python has allocated during *work* and not freed after it.

    What *work* returns counts. Call *work* with enough repetitions that a leak is larger than the
    caches of the interpreter: some kilobytes.
    """
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del kept
    return size
