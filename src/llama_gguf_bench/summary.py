"""The numbers of a level, computed from its records, each with its confidence interval.

Throughput counts only work in the window: a request's work is spread evenly over its duration
(output tokens from the first token to the last, prompt tokens before the first), and the part
within the window counts. So a long request at either end distorts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf_bench.estimates import (
    BATCHES,
    Estimate,
    mean_estimate,
    quantile_estimates,
    share_estimate,
)
from llama_gguf_bench.load import Level
from llama_gguf_bench.records import Record

QUANTILES: Final[Mapping[str, float]] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
Span = tuple[float, float, float]
"""An amount of work, with its beginning and end."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A reported metric. The units ``ms`` and ``/s`` are for people; files have seconds."""

    name: str
    title: str
    unit: str
    less_is_better: bool


LATENCIES: Final = (
    Measure("ttft_seconds", "time to first token", "ms", less_is_better=True),
    Measure("tpot_seconds", "time per output token", "ms", less_is_better=True),
    Measure("gap_seconds", "gap between tokens", "ms", less_is_better=True),
    Measure("latency_seconds", "whole response", "ms", less_is_better=True),
)
RATES: Final = (
    Measure("requests_per_second", "requests", "/s", less_is_better=False),
    Measure("output_tokens_per_second", "output tokens", "/s", less_is_better=False),
    Measure("prompt_tokens_per_second", "prompt tokens", "/s", less_is_better=False),
    Measure(
        "stream_output_tokens_per_second", "output tokens per stream", "/s", less_is_better=False
    ),
    Measure(
        "stream_prompt_tokens_per_second", "prompt tokens per stream", "/s", less_is_better=False
    ),
    Measure("goodput_per_second", "goodput: requests within SLO", "/s", less_is_better=False),
    Measure("within_slo_share", "requests within SLO", "%", less_is_better=False),
    Measure("error_share", "failed requests", "%", less_is_better=True),
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one level."""

    metrics: Mapping[str, Estimate]
    """LATENCIES with the suffixes ``.p50`` to ``.max``, and RATES."""
    counted: int
    errors: Mapping[str, int]
    counted_by: Mapping[str, int]
    tokens: Mapping[str, int]
    engine_ratio: float | None
    """Measured tokens per second of one stream, divided by those of llama.cpp's timings.

    Both count the tokens after the first, unlike its ``predicted_per_second``.
    """


def summarise(level: Level, slo: Mapping[str, float]) -> Summary:
    """Compute all reported numbers of *level*."""
    counted = level.counted
    good = [record for record in counted if record.ok]
    metrics: dict[str, Estimate | None] = {}
    for name, items in _latencies(good):
        metrics |= _percentiles(name, items)
    metrics |= _throughput(level)
    metrics |= _per_stream(good)
    if slo:
        metrics |= _goodput(level, slo)
    metrics["error_share"] = share_estimate([not record.ok for record in counted])
    return Summary(
        metrics={name: estimate for name, estimate in metrics.items() if estimate is not None},
        counted=len(counted),
        errors=dict(Counter(r.error for r in counted if r.error).most_common()),
        counted_by=dict(Counter(r.counted_by for r in good if r.counted_by).most_common()),
        tokens=_tokens(good),
        engine_ratio=_engine_ratio(good),
    )


def _latencies(good: Sequence[Record]) -> Iterator[tuple[str, list[Sequence[float]]]]:
    yield "ttft_seconds", [[v] for r in good if (v := r.ttft) is not None]
    yield "tpot_seconds", [[v] for r in good if (v := r.tpot) is not None]
    yield "gap_seconds", [r.gaps for r in good if r.gaps]
    yield "latency_seconds", [[v] for r in good if (v := r.latency) is not None]


def _percentiles(name: str, items: Sequence[Sequence[float]]) -> Mapping[str, Estimate]:
    found = quantile_estimates(items, tuple(QUANTILES.values()))
    if found is None:
        return {}
    largest = Estimate(max(max(item) for item in items))
    return {f"{name}.{q}": e for q, e in zip(QUANTILES, found, strict=True)} | {
        f"{name}.max": largest
    }


# Throughput -----------------------------------------------------------------------------------


def _throughput(level: Level) -> dict[str, Estimate | None]:
    records = [r for r in level.records if r.ended is not None or r.first is not None]
    done = [r for r in records if r.ok]
    return {
        "requests_per_second": _rate(_requests(done), level),
        "output_tokens_per_second": _rate(_output(records), level),
        "prompt_tokens_per_second": _rate(_prompts(done), level),
    }


def _requests(records: Iterable[Record]) -> Iterator[Span]:
    for r in records:
        if r.ended is not None:
            yield 1.0, r.started, r.ended


def _output(records: Iterable[Record]) -> Iterator[Span]:
    for r in records:
        begin = r.started if r.first is None else r.first
        end = r.last if r.last is not None else r.ended
        if end is not None:
            yield float(r.output_tokens), begin, end


def _prompts(records: Iterable[Record]) -> Iterator[Span]:
    for r in records:
        end = r.ended if r.first is None else r.first
        if end is not None and r.prompt_tokens is not None:
            yield float(r.prompt_tokens), r.started, end


def _rate(spans: Iterable[Span], level: Level) -> Estimate | None:
    if level.end <= level.begin:
        return None
    amounts = slices(spans, begin=level.begin, end=level.end, count=BATCHES)
    length = (level.end - level.begin) / BATCHES
    return mean_estimate([amount / length for amount in amounts]) if any(amounts) else None


def slices(spans: Iterable[Span], *, begin: float, end: float, count: int) -> list[float]:
    """The work in each of *count* equal parts of the time from *begin* to *end*."""
    found = [0.0] * count
    length = (end - begin) / count
    for amount, first, last in spans:
        if last < begin or first > end:
            continue
        low = max(0, min(count - 1, int((first - begin) / length)))
        high = max(0, min(count - 1, int((last - begin) / length)))
        if last <= first:
            found[low] += amount
            continue
        for i in range(low, high + 1):
            edge = begin + i * length
            inside = min(last, edge + length) - max(first, edge)
            found[i] += amount * max(0.0, inside) / (last - first)
    return found


def _per_stream(good: Sequence[Record]) -> dict[str, Estimate | None]:
    """Medians of single streams, as one client sees them."""
    output = [[1 / tpot] for r in good if (tpot := r.tpot)]
    prompt = [[r.prompt_tokens / t] for r in good if (t := r.ttft) and r.prompt_tokens is not None]
    found: dict[str, Estimate | None] = {}
    for name, items in (("output", output), ("prompt", prompt)):
        estimates = quantile_estimates(items, (0.5,))
        found[f"stream_{name}_tokens_per_second"] = estimates[0] if estimates else None
    return found


# SLO, tokens, the engine's timings --------------------------------------------------------------


def is_within(record: Record, slo: Mapping[str, float]) -> bool:
    """Whether *record* succeeded within every bound. An unknown value is not within."""
    return record.ok and all(
        (value := getattr(record, name)) is not None and value <= bound
        for name, bound in slo.items()
    )


def _goodput(level: Level, slo: Mapping[str, float]) -> dict[str, Estimate | None]:
    within = [r for r in level.records if is_within(r, slo)]
    rate = _rate(_requests(within), level)
    if rate is None and level.counted and level.end > level.begin:
        rate = Estimate(0.0)
    return {
        "goodput_per_second": rate,
        "within_slo_share": share_estimate([is_within(r, slo) for r in level.counted]),
    }


def _tokens(good: Sequence[Record]) -> dict[str, int]:
    return {
        "prompt": sum(r.prompt_tokens or 0 for r in good),
        "cached": sum(r.cached_tokens or 0 for r in good),
        "output": sum(r.output_tokens for r in good),
    }


def _engine_ratio(good: Sequence[Record]) -> float | None:
    """The seconds for the output in llama.cpp's timings, divided by the measured seconds."""
    pairs = [
        (r.engine_output_seconds, r.last - r.first)
        for r in good
        if r.engine_output_seconds and r.first is not None and r.last is not None
    ]
    seen = sum(ours for _, ours in pairs)
    return sum(theirs for theirs, _ in pairs) / seen if seen > 0 else None


def as_json(summary: Summary) -> dict[str, Any]:
    return {
        "counted": summary.counted,
        "errors": dict(summary.errors),
        "tokens": dict(summary.tokens),
        "tokens_counted_by": dict(summary.counted_by),
        "engine_ratio": summary.engine_ratio,
        "metrics": {name: estimate.as_json() for name, estimate in summary.metrics.items()},
    }
