"""The metrics as JSON, which needs no library. Imported at the first scrape that requests it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final

from llama_gguf.http1.local_response import JSON
from llama_gguf.telemetry.formats import Format, paced
from llama_gguf.telemetry.gauges import EngineMetric, Gauges
from llama_gguf.telemetry.histogram import Histogram
from llama_gguf.telemetry.metric_table import METRICS, Metric, Number, Sample
from llama_gguf.telemetry.metrics import Metrics

_BETWEEN_ROWS: Final = ",\n  "
_BETWEEN_METRICS: Final = b",\n "


def render(
    metrics: Metrics,
    gauges: Gauges,
    engine: Iterable[EngineMetric] = (),
    text_format: Format = Format.JSON,
    pause: Callable[[], None] | None = None,
) -> tuple[bytes, bytes]:
    """All metrics as JSON, and its content type; the arguments are those of ``exposition.render``.

    Values by name, with a row, and a line, for each combination of labels.

    Rows are serialised one by one: all of them, with thousands of keys, would make the garbage
    collector scan every object of the process.
    """
    del text_format
    parts: list[bytes] = []
    for metric in METRICS:
        found = metric.samples(metrics, gauges)
        if metric.labels:
            rows = [json.dumps(_row(metric, sample)) for sample in paced(found, pause)]
            text = f"[\n  {_BETWEEN_ROWS.join(rows)}\n ]" if rows else "[]"
        else:
            text = json.dumps(_value(found[0][1]) if found else None)
        parts.append(f"{json.dumps(metric.name)}: {text}".encode())
        if pause is not None:
            pause()
    for name, value in _of(engine).items():
        parts.append(f"{json.dumps(name)}: {json.dumps(value)}".encode())
    # Joined once: the whole may be megabytes, and each copy of it would hold the loop.
    parts[0] = b"{\n " + parts[0]
    parts[-1] += b"\n}\n"
    return _BETWEEN_METRICS.join(parts), JSON


def _of(engine: Iterable[EngineMetric]) -> dict[str, object]:
    theirs: dict[str, object] = {}
    for found in engine:
        if found.replica:
            rows = theirs.setdefault(found.name, [])
            assert isinstance(rows, list)
            rows.append({"replica": found.replica, "value": found.value})
        else:
            theirs[found.name] = found.value
    return theirs


def _row(metric: Metric, sample: Sample) -> dict[str, object]:
    values, number = sample
    return dict(zip(metric.labels, values, strict=True)) | {"value": _value(number)}


def _value(number: Number) -> object:
    if not isinstance(number, Histogram):
        return number
    buckets = dict(zip([f"{b:g}" for b in number.bounds], number.counts, strict=False))
    return {"count": sum(number.counts), "sum": number.sum, "buckets": buckets}
