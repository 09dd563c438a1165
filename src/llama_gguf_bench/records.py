"""The record of one request: times, tokens, and its result.

Times are seconds of one monotonic clock, from the beginning of the load. Every gap between
tokens is stored as measured, with 8 bytes: a day of 64 streams with 30 tokens a second needs
1.3 GB, an hour 55 MB. Nothing is rounded into buckets.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

INTERRUPTED: Final = "interrupted"
_US: Final = 1e6


@dataclass(slots=True)
class Record:
    """One request. Latencies count from ``intended``, when it should have been sent."""

    intended: float
    started: float
    """When it was actually sent; later than intended if the generator was late."""
    streamed: bool = True
    connected: float | None = None
    """When its new connection was established; None on a kept one."""
    first: float | None = None
    """The first token's time; like ``last`` and ``gaps``, known only for a stream."""
    last: float | None = None
    gaps: array[float] = field(default_factory=lambda: array("d"))
    ended: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    counted_by: str = ""
    """The source of the token count: the server's ``usage``, its ``timings``, or our ``events``."""
    engine_prompt_seconds: float | None = None
    engine_output_seconds: float | None = None
    error: str = ""
    """The kind of failure; empty if the response was complete."""

    @property
    def ok(self) -> bool:
        return not self.error and self.ended is not None

    @property
    def latency(self) -> float | None:
        """Seconds from the intended time to the end of the response."""
        return None if self.ended is None else self.ended - self.intended

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first is None else self.first - self.intended

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first."""
        if self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)

    def token(self, now: float) -> None:
        """Record an event with text."""
        if self.last is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now

    def shift(self, origin: float) -> None:
        """Convert all times to seconds since *origin*."""
        self.intended -= origin
        self.started -= origin
        for name in ("connected", "first", "last", "ended"):
            moment = getattr(self, name)
            if moment is not None:
                setattr(self, name, moment - origin)

    def as_json(self) -> dict[str, Any]:
        """Without empty members; rounded to the microsecond, which is below the noise."""
        row: dict[str, Any] = {
            name: round(value, 6) if isinstance(value, float) else value
            for name in self.__slots__
            if name != "gaps" and (value := getattr(self, name)) not in (None, "")
        }
        if self.gaps:
            row["gaps_us"] = [round(gap * _US) for gap in self.gaps]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        """Raises TypeError if *row* is not a record."""
        fields = dict(row)
        gaps = array("d", (gap / _US for gap in fields.pop("gaps_us", ())))
        return cls(gaps=gaps, **fields)
