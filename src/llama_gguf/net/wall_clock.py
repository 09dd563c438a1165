"""The wall clock, for processes that need no ``Clock``, which is compiled."""

from __future__ import annotations

from datetime import UTC, datetime


def wall_now() -> float:
    """POSIX seconds. For people and for expiry, never for durations."""
    return datetime.now(UTC).timestamp()
