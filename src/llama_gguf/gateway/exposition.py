"""The metrics in Prometheus' and OpenMetrics' text formats, by prometheus-client.

Imported at the first scrape that asks for one, and never before: it is not needed
to start, and the hot path counts plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from llama_gguf.core import metrics as core_metrics
from llama_gguf.core.metrics import METRICS, EngineMetric, Gauges, Histogram, Metrics


def render(
    metrics: Metrics, gauges: Gauges, engine: Iterable[EngineMetric], accept: str
) -> tuple[bytes, bytes]:
    """Text of all metrics in the format that *accept* prefers, and its content type.

    Those of this process (``process_*``) are prometheus-client's own. It never sees *accept*: a
    version that is no number would be an error there, and any other would come back.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(metrics, gauges, engine))
    ProcessCollector(registry=registry)
    ranges = [part for part in accept.split(",") if part.strip().startswith(_OPENMETRICS)]
    # Version 0 of it is a draft: whoever wants no other takes Prometheus' text.
    is_open = any("version=0" not in part for part in ranges)
    encode, content_type = choose_encoder(f"{_OPENMETRICS};version=1.0.0" if is_open else "")
    return encode(registry), content_type.encode()


_OPENMETRICS: Final = "application/openmetrics-text"


class _Snapshot(Collector):
    def __init__(self, metrics: Metrics, gauges: Gauges, engine: Iterable[EngineMetric]) -> None:
        self._samples = core_metrics.samples(metrics, gauges)
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        for metric in METRICS:
            family = _KINDS[metric.type](metric.name, metric.help, labels=metric.labels)
            for values, number in self._samples[metric.name]:
                if isinstance(number, Histogram):
                    _add_histogram(family, values, number)
                else:
                    family.add_metric(values, number)
            yield family
        for found in self._engine:
            yield _KINDS[found.metric.type](found.metric.name, found.metric.help, found.value)


_KINDS: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _add_histogram(family: Any, labels: Sequence[str], histogram: Histogram) -> None:
    bounds = [*(f"{b:g}" for b in histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric(labels, buckets=buckets, sum_value=histogram.sum)
