"""Points in time as people write them: ISO 8601, or a duration from now.

Every moment here is in POSIX seconds, and whole. A float represents those exactly up to the year
9999, so a moment that is formatted and parsed again is unchanged.
"""

from __future__ import annotations

import re
from typing import Final

ISO_8601: Final = "ISO 8601, such as 2027-01-31 or 2027-01-31T12:00:00Z"
END_OF_9999: Final = 253_402_300_800.0

_ISO_LETTERS: Final = r"[0-9A-Za-z:.,+ -]{1,64}"
_DURATION: Final = r"([0-9]{1,9})([mhd])"
_UNIT_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}

# `datetime` is imported by the functions that use it, since most keys never expire.


def parse_moment(text: str) -> float:
    """Parse ISO 8601. No zone means UTC; a date alone means the start of that day.

    Raises:
        ValueError: its message is the expected form, and contains nothing of *text*, which may be
            a secret in the wrong place.
    """
    from datetime import UTC, datetime  # noqa: PLC0415

    if not re.fullmatch(_ISO_LETTERS, text):
        raise ValueError(ISO_8601)
    try:
        moment = datetime.fromisoformat(text)
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return zoned.astimezone(UTC).replace(microsecond=0).timestamp()
    except (ValueError, OverflowError):  # in UTC, the year may be 0 or 10000
        raise ValueError(ISO_8601) from None


def format_moment(seconds: float) -> str:
    """Format POSIX *seconds* as ISO 8601, such as ``2027-01-31T12:00:00Z``."""
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def parse_duration(text: str, now: float) -> float:
    """Parse ``30d``, ``24h``, ``60m`` or an ISO 8601 time in the future.

    Args:
        text: as a person wrote it.
        now: in POSIX seconds.

    Raises:
        ValueError: its message is the expected form; also for a moment that is not in the future.
    """
    match = re.fullmatch(_DURATION, text)
    try:
        moment = _after(now, match) if match else parse_moment(text)
    except ValueError:
        raise ValueError("use the form 30d, 24h, 60m, 2027-01-31 or 2027-01-31T12:00:00Z") from None
    if moment <= now:
        raise ValueError("it must be in the future, such as 30d, 24h or 60m")
    return moment


def _after(now: float, duration: re.Match[str]) -> float:
    moment = float(int(now) + int(duration[1]) * _UNIT_SECONDS[duration[2]])
    if moment >= END_OF_9999:
        raise ValueError
    return moment
