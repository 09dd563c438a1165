"""The metrics in Prometheus' and OpenMetrics' text formats, by prometheus-client.

Imported at the first scrape that asks for one, and never before: it is not needed
to start, and the hot path counts plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from llama_gguf.core import metrics as core_metrics
from llama_gguf.core.metrics import METRICS, Gauges, Histogram, Metrics


def render(metrics: Metrics, gauges: Gauges, accept: str) -> tuple[bytes, bytes]:
    """Text of all metrics in the format that *accept* prefers, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(metrics, gauges))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type.encode()


class _Snapshot(Collector):
    def __init__(self, metrics: Metrics, gauges: Gauges) -> None:
        self._samples = core_metrics.samples(metrics, gauges)

    def collect(self) -> Iterator[Metric]:
        for metric in METRICS:
            found = self._samples[metric.name]
            if isinstance(found, Histogram):
                yield _histogram(metric, found)
                continue
            kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for values, number in found:
                family.add_metric(values, number)
            yield family


def _histogram(metric: core_metrics.Metric, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.help)
    bounds = [*(f"{b:g}" for b in histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric([], buckets=buckets, sum_value=histogram.sum)
    return family
