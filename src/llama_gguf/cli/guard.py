"""Runs work that may fail or hang, and returns in either case: for `diagnose`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from typing import TypeVar

from llama_gguf.errors import UserError
from llama_gguf.net.threads import start_detached

Found = TypeVar("Found")


def within(seconds: float, work: Callable[[], Found]) -> tuple[Found | None, str]:
    """The result of *work*, or None and the reason; on a thread, as a file system may hang."""
    outcome = start_detached(work)
    wait([outcome], seconds)
    if not outcome.done():
        return None, f"it did not finish within {seconds:g} s"
    error = outcome.exception()
    if error is None:
        return outcome.result(), ""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return None, f"{kind}{error}"
