"""Builds of llama.cpp by their number, and which of them this version is tested with."""

from __future__ import annotations

import re
from typing import Final

OLDEST_TESTED: Final = 10068
"""Of July 2026: the one that `[engine]` installs on x86-64, with which all tests run."""
NEWEST_TESTED: Final = 11549
"""Of October 2026: `make drift`, and on arm64 `[engine]`."""
_NUMBER: Final = r"b?([0-9]{4,9})\b"
"""A build from a clone without history counts its commits from 1, so its number means nothing."""


def build_of(version: str, wheel_version: str = "") -> int | None:
    """The number of a build; None if it is unknown.

    Args:
        version: as llama-server shows it, such as ``11549 (0bc3d2e)``.
        wheel_version: of the wheel that it is from, such as ``0.10068.0`` or ``2026.10.11549``.
    """
    shown = re.match(_NUMBER, version)
    if shown is not None:
        return int(shown[1])
    parts = [int(part) for part in wheel_version.split(".") if part.isdecimal()]
    largest = max(parts, default=0)
    return largest if largest >= 1000 else None


def tested_text(build: int) -> str:
    """How *build* compares with those that are tested."""
    if build < OLDEST_TESTED:
        return f"older than {OLDEST_TESTED}, the oldest tested"
    if build > NEWEST_TESTED:
        return f"newer than {NEWEST_TESTED}, the newest tested"
    return f"one of those tested, {OLDEST_TESTED} to {NEWEST_TESTED}"


def is_old(build: int) -> bool:
    """Whether it is older than any that is tested."""
    return build < OLDEST_TESTED
