"""The format of the metrics that a client accepts, and JSON, which needs no library.

Prometheus' text formats are in ``exposition.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

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


def as_json(
    metrics: Metrics, gauges: Gauges, engine: Iterable[EngineMetric] = ()
) -> dict[str, object]:
    """All metrics as JSON: values by name, with one row for each combination of labels."""
    ours = {metric.name: _plain(metric, metric.samples(metrics, gauges)) for metric in METRICS}
    theirs: dict[str, object] = {}
    for found in engine:
        if found.replica:
            rows = theirs.setdefault(found.name, [])
            assert isinstance(rows, list)
            rows.append({"replica": found.replica, "value": found.value})
        else:
            theirs[found.name] = found.value
    return ours | theirs


def _plain(metric: Metric, found: Sequence[Sample]) -> object:
    if not metric.labels:
        return _value(found[0][1]) if found else None
    return [
        dict(zip(metric.labels, values, strict=True)) | {"value": _value(number)}
        for values, number in found
    ]


def _value(number: Number) -> object:
    if not isinstance(number, Histogram):
        return number
    buckets = dict(zip([f"{b:g}" for b in number.bounds], number.counts, strict=False))
    return {"count": sum(number.counts), "sum": number.sum, "buckets": buckets}
