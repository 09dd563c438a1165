"""The format of the metrics that a client accepts, and JSON, which needs no library.

Prometheus' text formats are in ``exposition.py``.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from llama_gguf.telemetry.histogram import Histogram
from llama_gguf.telemetry.metrics import (
    METRICS,
    EngineMetric,
    Gauges,
    Metric,
    Metrics,
    Number,
    Sample,
)

_Item = TypeVar("_Item")

ITEMS_PER_PAUSE: Final = 128
"""Less than a millisecond of work."""
_BETWEEN_ROWS: Final = ",\n  "
_BETWEEN_METRICS: Final = ",\n "


class Format(enum.Enum):
    JSON = "json"
    PROMETHEUS = "prometheus"
    OPENMETRICS = "openmetrics"


def negotiated_format(accept: bytes, query: bytes) -> Format:
    """The format of the metrics for a request with the field *accept* and this *query*."""
    for part in accept.split(b","):
        # Version 0 of OpenMetrics is a draft: its clients get Prometheus' text.
        if part.strip().startswith(b"application/openmetrics-text") and b"version=0" not in part:
            return Format.OPENMETRICS
    is_text = b"openmetrics" in accept or b"text/plain" in accept
    is_requested = b"format=prometheus" in query.split(b"&")
    return Format.PROMETHEUS if is_text or is_requested else Format.JSON


def json_text(
    metrics: Metrics,
    gauges: Gauges,
    engine: Iterable[EngineMetric] = (),
    pause: Callable[[], None] | None = None,
) -> str:
    """All metrics as JSON: values by name, with a row, and a line, for each combination of labels.

    *pause* as for ``paced``.

    Rows are serialised one by one: all of them, with thousands of keys, would make the garbage
    collector scan every object of the process.
    """
    parts = []
    for metric in METRICS:
        found = metric.samples(metrics, gauges)
        if metric.labels:
            rows = [json.dumps(_row(metric, sample)) for sample in paced(found, pause)]
            text = f"[\n  {_BETWEEN_ROWS.join(rows)}\n ]" if rows else "[]"
        else:
            text = json.dumps(_value(found[0][1]) if found else None)
        parts.append(f"{json.dumps(metric.name)}: {text}")
    parts += [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in _of(engine).items()]
    return f"{{\n {_BETWEEN_METRICS.join(parts)}\n}}\n"


def paced(items: Iterable[_Item], pause: Callable[[], None] | None) -> Iterator[_Item]:
    """*items*, with a call of *pause* now and then, for work on a thread."""
    for number, item in enumerate(items, 1):
        if pause is not None and not number % ITEMS_PER_PAUSE:
            pause()
        yield item


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
