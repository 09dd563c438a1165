"""Points in time as people write them: ISO 8601, or a duration from now.

Every moment here is in UTC and in whole seconds. A float of POSIX seconds represents those
exactly up to the year 9999, so a moment that is formatted and parsed again is unchanged.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

ISO_8601: Final = "ISO 8601, such as 2027-01-31 or 2027-01-31T12:00:00Z"

_ISO_LETTERS: Final = r"[0-9A-Za-z:.,+ -]{1,64}"
_DURATION: Final = r"([0-9]{1,9})([mhd])"
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def parse_moment(text: str) -> datetime:
    """Parse ISO 8601. No zone means UTC; a date alone means the start of that day.

    Raises:
        ValueError: its message is the expected form, and contains nothing of *text*, which may be
            a secret in the wrong place.
    """
    if not re.fullmatch(_ISO_LETTERS, text):
        raise ValueError(ISO_8601)
    try:
        moment = datetime.fromisoformat(text)
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return zoned.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):  # in UTC, the year may be 0 or 10000
        raise ValueError(ISO_8601) from None


def format_moment(seconds: float) -> str:
    """Format POSIX *seconds* as ISO 8601, such as ``2027-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def parse_duration(text: str, now: datetime) -> datetime:
    """Parse ``30d``, ``24h``, ``60m`` or an ISO 8601 time in the future.

    Args:
        text: as a person wrote it.
        now: the current time, with a zone.

    Raises:
        ValueError: its message is the expected form; also for a moment that is not in the future.
    """
    try:
        moment = _moment_after(text, now.astimezone(UTC).replace(microsecond=0))
    except (ValueError, OverflowError):
        raise ValueError("use the form 30d, 24h, 60m, 2027-01-31 or 2027-01-31T12:00:00Z") from None
    if moment <= now:
        raise ValueError("it must be in the future, such as 30d, 24h or 60m")
    return moment


def _moment_after(text: str, now: datetime) -> datetime:
    if match := re.fullmatch(_DURATION, text):
        return now + timedelta(**{_UNITS[match[2]]: int(match[1])})
    return parse_moment(text)
