"""What a file looks like from outside, to notice that it has changed."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a file looks from outside: another one, or another content, looks different."""

    file: tuple[int, int]
    """Which it is, behind all links: a Kubernetes secret is changed by another target."""
    state: tuple[int, int, int]


def stamp(path: str) -> Stamp | None:
    """How the file looks now; None when there is none, or it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    # The time of change, not of writing: that one can be set back, and misses a chmod.
    state = (found.st_ctime_ns, found.st_size, found.st_mode)
    return Stamp((found.st_dev, found.st_ino), state)
