"""Results as rows of text, for the terminal, CSV and the HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llama_gguf_bench.compare import Change
from llama_gguf_bench.estimates import Estimate
from llama_gguf_bench.load import Level
from llama_gguf_bench.options import Load
from llama_gguf_bench.overhead import MEASURES, Added, Turns
from llama_gguf_bench.records import INTERRUPTED
from llama_gguf_bench.summary import LATENCIES, QUANTILES, RATES, Summary

Row = tuple[str, ...]
Results = Sequence[tuple[Level, Summary]]

NOTHING: Final = "-"
RATE_LIMITED: Final = (
    "the key's rate limit was reached; create a key: llama-gguf keys generate --rate-limit 1000000"
)
_TITLES: Final = {m.name: (m.title, m.unit) for m in (*LATENCIES, *RATES)}
_ADDED_TITLES: Final = {f"added_{name}_seconds": f"added to {t}" for name, t in MEASURES.items()}


def number(value: float) -> str:
    """A number with three significant digits and without an exponent."""
    size = abs(value)
    for bound, digits in ((100, 0), (10, 1), (1, 2)):
        if size >= bound:
            return f"{value:.{digits}f}"
    return f"{value:.3f}" if value else "0"


def scaled(value: float, unit: str) -> float:
    """The factor from a file's unit to the displayed one: seconds to ms, shares to per cent."""
    return value * {"ms": 1e3, "%": 1e2}.get(unit, 1.0)


def _cell(estimate: Estimate | None, unit: str) -> str:
    return NOTHING if estimate is None else number(scaled(estimate.value, unit))


# A run --------------------------------------------------------------------------------------------


def columns(results: Results) -> Row:
    return ("", *(level.load.text for level, _ in results))


def rows(results: Results) -> list[Row]:
    """One row per metric, one column per load, without empty rows."""
    return [row for row in _rows(results) if any(cell != NOTHING for cell in row[1:])]


def _rows(results: Results) -> Iterator[Row]:
    yield ("requests counted", *(str(s.counted) for _, s in results))
    for measure in RATES:
        yield (f"{measure.title} {measure.unit}", *_cells(results, measure.name, measure.unit))
    for measure in LATENCIES:
        for q in (*QUANTILES, "max"):
            name = f"{measure.title} {q} {measure.unit}"
            yield (name, *_cells(results, f"{measure.name}.{q}", measure.unit))
    yield ("cached prompt tokens %", *(_cached(s) for _, s in results))
    yield ("slots used, mean", *(_fact(level, "slots_used_mean") for level, _ in results))
    yield ("queue length, maximum", *(_fact(level, "queue_max") for level, _ in results))
    yield (
        "wait in queue, mean ms",
        *(_fact(level, "queue_wait_mean_seconds", 1e3) for level, _ in results),
    )
    yield ("tokens/s, % of llama.cpp's value", *(_engine(s) for _, s in results))


def _cells(results: Results, name: str, unit: str) -> Iterator[str]:
    return (_cell(summary.metrics.get(name), unit) for _, summary in results)


def _cached(summary: Summary) -> str:
    prompt = summary.tokens["prompt"]
    return number(100 * summary.tokens["cached"] / prompt) if prompt else NOTHING


def _fact(level: Level, name: str, factor: float = 1) -> str:
    if name not in level.server:
        return NOTHING
    value = level.server[name] * factor
    return str(value) if isinstance(value, int) else number(value)


def _engine(summary: Summary) -> str:
    return NOTHING if summary.engine_ratio is None else f"{100 * summary.engine_ratio:.1f}"


def notes(results: Results) -> list[str]:
    """Remarks on the numbers."""
    found = []
    for level, summary in results:
        where = level.load.text
        if level.interrupted:
            unfinished = sum(r.error == INTERRUPTED for r in level.records)
            found.append(
                f"{where}: interrupted after {level.end:.1f} s, "
                f"{unfinished} unfinished requests excluded."
            )
        if not summary.counted:
            found.append(f"{where}: no request was counted; use a longer --duration.")
        found += [f"{where}: {n} x {error}" for error, n in summary.errors.items()]
        if any(error.startswith("status 429") for error in summary.errors):
            found.append(f"{where}: {RATE_LIMITED}")
        if complaint := level.generator.complaint(smallest_latency(summary)):
            found.append(f"{where}: {complaint}.")
        if level.sent_again:
            found.append(f"{where}: {level.sent_again} kept connections were closed by the server.")
    return found + _counting(results)


def _counting(results: Results) -> list[str]:
    sources = {source for _, summary in results for source in summary.counted_by}
    counted_from = {
        "usage": "the server's usage",
        "timings": "llama.cpp's timings",
        "events": "events with text, as one token each, because the server reports no count",
    }
    return [f"Tokens are counted from: {counted_from[source]}." for source in sorted(sources)]


def smallest_latency(summary: Summary) -> float | None:
    medians = [
        e.value for n, e in summary.metrics.items() if n.endswith("_seconds.p50") and e.value > 0
    ]
    return min(medians, default=None)


# Overhead -----------------------------------------------------------------------------------------

ADDED_COLUMNS: Final = (
    *("", "STREAMS", "BLOCKS", "DIRECT", "GATEWAY", "ADDED (MEDIAN)", "ADDED (MEAN)"),
)


def added_rows(found: Sequence[tuple[Turns, Mapping[str, Added]]]) -> list[Row]:
    """One row per measure and number of streams; milliseconds, with 95 % intervals."""
    return [
        (
            f"{MEASURES[name]} ms",
            str(turns.streams),
            str(len(turns.pairs)),
            number(one.direct * 1e3),
            number(one.gateway * 1e3),
            with_bounds(one.median),
            with_bounds(one.mean),
        )
        for turns, measures in found
        for name, one in measures.items()
    ]


def with_bounds(estimate: Estimate) -> str:
    """``+0.210 (+0.180 to +0.250)``, in ms."""
    text = _signed(estimate.value * 1e3)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({_signed(estimate.low * 1e3)} to {_signed(estimate.high * 1e3)})"


def added_notes(found: Sequence[tuple[Turns, Mapping[str, Added]]]) -> list[str]:
    """Remarks on the differences."""
    notes = []
    for turns, measures in found:
        where = Load(streams=turns.streams).text
        if turns.interrupted:
            notes.append(f"{where}: interrupted.")
        if turns.failed:
            notes.append(f"{where}: {turns.failed} requests failed: {'; '.join(turns.errors)}")
        smallest = min((one.direct for one in measures.values()), default=None)
        if complaint := turns.generator.complaint(smallest):
            notes.append(f"{where}: {complaint}; both sides are affected.")
    return notes


# Two runs -----------------------------------------------------------------------------------------

CHANGE_COLUMNS: Final = ("LOAD", "", "A", "B", "CHANGE", "99 % OF ALL", "IS")


def change_rows(found: Sequence[Change]) -> list[Row]:
    return [_change_row(change) for change in found]


def _change_row(change: Change) -> Row:
    title, unit = titled(change.metric)
    bounds = change.difference
    between = NOTHING
    if bounds.low is not None and bounds.high is not None:
        low, high = scaled(bounds.low, unit), scaled(bounds.high, unit)
        between = f"{_signed(low)} to {_signed(high)}"
    return (
        change.load,
        f"{title} {unit}",
        number(scaled(change.a.value, unit)),
        number(scaled(change.b.value, unit)),
        NOTHING if change.share is None else f"{change.share:+.1%}",
        between,
        change.verdict,
    )


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def titled(metric: str) -> tuple[str, str]:
    """The title and unit of a metric such as ``ttft_seconds.p50``."""
    name, _, q = metric.partition(".")
    if name in _ADDED_TITLES:
        return _ADDED_TITLES[name], "ms"
    title, unit = _TITLES.get(name, (name, ""))
    return f"{title} {q}".rstrip(), unit


# CSV ----------------------------------------------------------------------------------------------

_CSV_COLUMNS: Final = ("streams", "rate", "metric", "value", "low", "high")


def as_csv(results: Results) -> str:
    """One line per number; seconds and shares, as in the JSON file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for level, summary in results:
        for name, e in summary.metrics.items():
            writer.writerow((level.load.streams, level.load.rate, name, e.value, e.low, e.high))
        for error, count in summary.errors.items():
            writer.writerow(
                (level.load.streams, level.load.rate, f"errors: {error}", count, "", "")
            )
    return out.getvalue()


def added_csv(found: Sequence[tuple[Turns, Mapping[str, Added]]]) -> str:
    """The CSV of a gateway's overhead: one line per measure and statistic."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for turns, measures in found:
        for name, one in measures.items():
            for kind, e in (("median", one.median), ("mean", one.mean)):
                metric = f"added_{name}_seconds.{kind}"
                writer.writerow((turns.streams, "", metric, e.value, e.low, e.high))
    return out.getvalue()
