"""Runs work that may fail or hang, and returns in either case: for `diagnose`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from llama_gguf.errors import UserError

Found = TypeVar("Found")


def within(seconds: float, work: Callable[[], Found]) -> tuple[Found | None, str]:
    """What *work* returns, or None and why; on a thread, as a dead file system never answers."""
    found: list[Found] = []
    troubles: list[str] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:  # whatever it is, it is told, and nothing else ends
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            troubles.append(f"{kind}{error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0], ""
    return None, troubles[0] if troubles else f"it did not finish within {seconds:g} s"
