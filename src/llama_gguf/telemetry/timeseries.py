"""The last 15 minutes in small steps, for charts. New steps replace the oldest.

A step is the difference between two readings of counters that never decrease.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

STEP_SECONDS: Final = 5.0
STEPS: Final = 180
RECENT_STEPS: Final = 12
"""Shown as "now": a minute."""
MAX_TIMES: Final = 256
"""Times to a first token that a step keeps; the latest ones."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The values at one moment."""

    requests: int
    """Counters, since the start of the gateway."""
    prompt_tokens: int
    completion_tokens: int
    errors: Mapping[str, int]
    """By reason."""
    running: int
    waiting: int
    first_tokens: Sequence[float]
    """Seconds to the first token of responses that began since the last reading."""


@dataclass(frozen=True, slots=True)
class _Step:
    seconds: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    errors: Mapping[str, int]
    running: int
    waiting: int
    first_tokens: Sequence[float]


class History:
    """The steps of one gateway.

    Args:
        now: seconds on a monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._steps: deque[_Step] = deque(maxlen=STEPS)
        self._last = Reading(0, 0, 0, {}, 0, 0, ())
        self._last_at = now

    def is_due(self, now: float) -> bool:
        return now >= self._last_at + STEP_SECONDS

    def take(self, reading: Reading, now: float) -> None:
        """Add the step from the previous reading to this one."""
        last = self._last
        errors = {r: n - last.errors.get(r, 0) for r, n in reading.errors.items()}
        self._steps.append(
            _Step(
                seconds=max(now - self._last_at, 1e-3),
                requests=reading.requests - last.requests,
                prompt_tokens=reading.prompt_tokens - last.prompt_tokens,
                completion_tokens=reading.completion_tokens - last.completion_tokens,
                errors={r: n for r, n in errors.items() if n},
                running=reading.running,
                waiting=reading.waiting,
                first_tokens=tuple(reading.first_tokens)[-MAX_TIMES:],
            )
        )
        self._last, self._last_at = reading, now

    def recent(self) -> dict[str, float | None]:
        """The rates and quantiles of the last minute."""
        steps = list(self._steps)[-RECENT_STEPS:]
        times = sorted(t for step in steps for t in step.first_tokens)
        seconds = sum(step.seconds for step in steps)
        return _rates(steps, seconds) | _quantiles(times)

    def series(self) -> dict[str, list[float | None]]:
        """All steps, the oldest first, as one list for each number."""
        rows = [
            _rates([step], step.seconds)
            | _quantiles(sorted(step.first_tokens))
            | {"running": step.running, "waiting": step.waiting}
            for step in self._steps
        ]
        return {name: [row[name] for row in rows] for name in NAMES}

    def errors(self) -> dict[str, int]:
        """Errors of all steps by reason, the most frequent first."""
        total: dict[str, int] = {}
        for step in self._steps:
            for reason, count in step.errors.items():
                total[reason] = total.get(reason, 0) + count
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


NAMES: Final = (
    *("requests_per_second", "prompt_tokens_per_second", "completion_tokens_per_second"),
    *("first_token_p50", "first_token_p95", "running", "waiting"),
)


def _rates(steps: Iterable[_Step], seconds: float) -> dict[str, float | None]:
    steps = list(steps)
    if not steps:
        return dict.fromkeys(NAMES[:3], 0.0)
    counts = (
        sum(step.requests for step in steps),
        sum(step.prompt_tokens for step in steps),
        sum(step.completion_tokens for step in steps),
    )
    return {name: round(n / seconds, 3) for name, n in zip(NAMES[:3], counts, strict=True)}


def _quantiles(times: Sequence[float]) -> dict[str, float | None]:
    return {"first_token_p50": quantile(times, 0.5), "first_token_p95": quantile(times, 0.95)}


def quantile(rising: Sequence[float], share: float) -> float | None:
    """The smallest value that *share* of the values do not exceed (nearest rank)."""
    if not rising:
        return None
    return round(rising[math.ceil(share * len(rising)) - 1], 4)
