"""Points in time as people write them: ISO 8601, or a duration from now.

Every moment here is in UTC and in whole seconds, which a float of POSIX seconds holds
exactly up to the year 9999: what is written out reads back as the same number.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

ISO_8601: Final = "ISO 8601, such as 2027-01-31 or 2027-01-31T12:00:00Z"

_ISO_LETTERS: Final = re.compile(r"[0-9A-Za-z:.,+ -]{1,64}")
_DURATION: Final = re.compile(r"([0-9]{1,9})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def parse_moment(text: str) -> datetime:
    """Read ISO 8601. No zone means UTC; a date alone means the start of that day.

    Raises:
        ValueError: with what would be right, and nothing of *text*.
    """
    if not _ISO_LETTERS.fullmatch(text):
        raise ValueError(ISO_8601)
    try:
        moment = datetime.fromisoformat(text)
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return zoned.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):  # the zone may lead out of the years 1 to 9999
        raise ValueError(ISO_8601) from None


def format_moment(seconds: float) -> str:
    """ISO 8601 of POSIX *seconds*, such as ``2027-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def parse_duration(text: str, now: datetime) -> datetime:
    """The moment that ``30d``, ``24h``, ``60m`` or an ISO 8601 time stands for.

    Args:
        text: what a person wrote.
        now: the present, with a zone.

    Raises:
        ValueError: with what would be right; also for a moment that is not ahead.
    """
    try:
        moment = _moment_after(text, now.astimezone(UTC).replace(microsecond=0))
    except (ValueError, OverflowError):
        raise ValueError("use the form 30d, 24h, 60m, 2027-01-31 or 2027-01-31T12:00:00Z") from None
    if moment <= now:
        raise ValueError("it must be in the future, such as 30d, 24h or 60m")
    return moment


def _moment_after(text: str, now: datetime) -> datetime:
    if match := _DURATION.fullmatch(text):
        return now + timedelta(**{_UNITS[match[2]]: int(match[1])})
    return parse_moment(text)
