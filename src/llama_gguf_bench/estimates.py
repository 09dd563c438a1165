"""Estimates with confidence intervals. Pure arithmetic: no clock, random numbers are passed in.

Consecutive requests are correlated (the machine throttles, the cache fills). Therefore the noise
is estimated from batches of consecutive requests, not from single ones. All intervals are 99 %:
a comparison has about forty of them, and with 95 % two would show a change by chance.
"""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

CONFIDENCE: Final = 0.99
BATCHES: Final = 20
MIN_BATCHES: Final = 5
"""Fewer batches are too few to estimate their variance."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 99 % confidence interval; None as bounds if there are too few values."""

    value: float
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, document: Any) -> Estimate:
        """Raises KeyError or TypeError if *document* is not an estimate."""
        low, high = (None if document[n] is None else float(document[n]) for n in ("low", "high"))
        return cls(float(document["value"]), low, high)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The *share* quantile of sorted values, with linear interpolation."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def batches(items: Sequence[Sequence[float]], count: int = BATCHES) -> list[list[float]]:
    """Join consecutive *items* into at most *count* batches of about equal numbers of items."""
    count = min(count, len(items))
    cuts = [round(i * len(items) / count) for i in range(count + 1)] if count else []
    return [[value for item in items[a:b] for value in item] for a, b in pairwise(cuts)]


def quantile_estimates(
    items: Sequence[Sequence[float]], shares: Sequence[float]
) -> list[Estimate] | None:
    """Quantiles of all values, with bounds that hold for any distribution; None without values.

    The share of values below a quantile is itself uncertain, by its variation between batches;
    the quantiles at both ends of that range are the bounds (Woodruff 1952).

    Args:
        items: the values of one request each, requests in chronological order.
        shares: 0.5 for the median.
    """
    ordered = sorted(value for item in items for value in item)
    if not ordered:
        return None
    parts = [sorted(part) for part in batches(items) if part]
    return [_quantile_estimate(ordered, parts, share) for share in shares]


def _quantile_estimate(
    ordered: Sequence[float], parts: Sequence[Sequence[float]], share: float
) -> Estimate:
    value = quantile(ordered, share)
    error = _share_error([(bisect_right(part, value), len(part)) for part in parts], share)
    if error is None:
        return Estimate(value)
    low, high = share - error, share + error
    return Estimate(
        value,
        quantile(ordered, low) if low > 0 else None,
        quantile(ordered, high) if high < 1 else None,
    )


def mean_estimate(values: Iterable[float]) -> Estimate | None:
    """The mean of values of about equal weight in chronological order, such as one per slice."""
    row = list(values)
    if not row:
        return None
    mean = statistics.fmean(row)
    if len(row) < MIN_BATCHES:
        return Estimate(mean)
    error = t_quantile(len(row) - 1) * statistics.stdev(row) * math.sqrt(_inflation(row) / len(row))
    return Estimate(mean, mean - error, mean + error)


def share_estimate(flags: Sequence[bool]) -> Estimate | None:
    """The share of true values; they are in chronological order."""
    if not flags:
        return None
    share = sum(flags) / len(flags)
    parts = batches([[float(flag)] for flag in flags])
    error = _share_error([(sum(part), len(part)) for part in parts], share)
    if error is None:
        return Estimate(share)
    if share in (0.0, 1.0):
        error = 1 - (1 - CONFIDENCE) ** (1 / len(flags))  # the bound from n equal outcomes
    return Estimate(share, max(0.0, share - error), min(1.0, share + error))


def _share_error(parts: Sequence[tuple[float, int]], share: float) -> float | None:
    """The error of *share*, given (hits, values) of each batch; None if the batches are too few.

    It is at least the error of independent values.
    """
    count, total = len(parts), sum(n for _, n in parts)
    if count < MIN_BATCHES:
        return None
    between = count / (count - 1) * sum((hits - share * n) ** 2 for hits, n in parts) / total**2
    return t_quantile(count - 1) * math.sqrt(max(between, share * (1 - share) / total))


def _inflation(row: Sequence[float]) -> float:
    """The factor by which autocorrelation (first order) increases the variance of the mean."""
    mean = statistics.fmean(row)
    spread = sum((v - mean) ** 2 for v in row)
    if not spread:
        return 1.0
    shared = sum((a - mean) * (b - mean) for a, b in pairwise(row)) / spread
    alike = min(max(shared, 0.0), 0.9)
    return (1 + alike) / (1 - alike)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t: the normal quantile, corrected for few values.

    The first four terms of its expansion in 1 / *freedom* (Abramowitz and Stegun 26.7.5).
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """*b* - *a*, with bounds from the bounds of both (MOVER: Zou and Donner 2008)."""
    change = b.value - a.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(change)
    down = math.hypot(b.value - b.low, a.high - a.value)
    up = math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(change, change - down, change + up)


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent *estimates* of the same number."""
    count = len(estimates)
    value = statistics.fmean(e.value for e in estimates)
    lows = [e.value - e.low for e in estimates if e.low is not None]
    highs = [e.high - e.value for e in estimates if e.high is not None]
    if len(lows) < count or len(highs) < count:
        return Estimate(value)
    return Estimate(value, value - math.hypot(*lows) / count, value + math.hypot(*highs) / count)


def widened(estimate: Estimate, count: int) -> Estimate:
    """*estimate* with bounds that hold for *count* such estimates together (Bonferroni)."""
    if estimate.low is None or estimate.high is None or count < 2:
        return estimate
    normal = statistics.NormalDist()
    each, together = (1 - CONFIDENCE) / 2, (1 - CONFIDENCE) / (2 * count)
    factor = normal.inv_cdf(together) / normal.inv_cdf(each)
    value = estimate.value
    down, up = (value - estimate.low) * factor, (estimate.high - value) * factor
    return Estimate(value, value - down, value + up)


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    rng: random.Random,
    *,
    confidence: float = 0.95,
    rounds: int = 2000,
) -> Estimate:
    """*statistic* of *values*, with the percentile interval of resampling."""
    value = statistic(values)
    if len(values) < MIN_BATCHES:
        return Estimate(value)
    drawn = sorted(statistic(rng.choices(values, k=len(values))) for _ in range(rounds))
    tail = (1 - confidence) / 2
    return Estimate(value, quantile(drawn, tail), quantile(drawn, 1 - tail))
