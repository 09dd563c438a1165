"""The metrics in Prometheus' and OpenMetrics' text formats, with prometheus-client.

Imported at the first scrape that requests one, since neither the start nor the hot path needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from llama_gguf.telemetry.formats import Format, paced
from llama_gguf.telemetry.gauges import EngineMetric, Gauges
from llama_gguf.telemetry.histogram import Histogram
from llama_gguf.telemetry.metric_table import METRICS
from llama_gguf.telemetry.metrics import Metrics


def render(
    metrics: Metrics,
    gauges: Gauges,
    engine: Iterable[EngineMetric],
    text_format: Format,
    pause: Callable[[], None] | None = None,
) -> tuple[bytes, bytes]:
    """Text of all metrics in the format *text_format*, which is not JSON, and its content type.

    Those of this process (``process_*``) are prometheus-client's own. It never receives a client's
    Accept field: it fails on a version that is not a number, and echoes all others. *pause*
    is called now and then, if this runs on a thread.
    """
    encode, content_type = choose_encoder(_ACCEPTS[text_format])
    end = encode(_Families([]))  # of a text without metrics
    parts: list[bytes] = []
    for collector in (_Snapshot(metrics, gauges, engine, pause), ProcessCollector(registry=None)):
        for family in collector.collect():
            # One by one: to join or to free all of them would hold the loop, also from a thread.
            parts.append(encode(_Families([family])).removesuffix(end))
            for _ in paced(range(len(family.samples)), pause):
                family.samples.pop()
    return b"".join((*parts, end)), content_type.encode()


_ACCEPTS: Final[Mapping[Format, str]] = {
    Format.PROMETHEUS: "",
    Format.OPENMETRICS: "application/openmetrics-text;version=1.0.0",
}


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class _Paced(list[Sample]):
    """Samples whose iteration pauses."""

    def __init__(self, samples: Iterable[Sample], pause: Callable[[], None] | None) -> None:
        super().__init__(samples)
        self._pause = pause

    def __iter__(self) -> Iterator[Sample]:
        return paced(super().__iter__(), self._pause)


class _Snapshot(Collector):
    def __init__(
        self,
        metrics: Metrics,
        gauges: Gauges,
        engine: Iterable[EngineMetric],
        pause: Callable[[], None] | None,
    ) -> None:
        self._pause = pause
        self._metrics = metrics
        self._gauges = gauges
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        for metric in METRICS:
            family = _KINDS[metric.type](metric.name, metric.help, labels=metric.labels)
            samples = metric.samples(self._metrics, self._gauges)
            for values, number in paced(samples, self._pause):
                if isinstance(number, Histogram):
                    _add_histogram(family, values, number)
                else:
                    family.add_metric(values, number)
            family.samples = _Paced(family.samples, self._pause)
            yield family
        families: dict[str, Any] = {}
        for found in self._engine:
            labels = (found.replica,) if found.replica else ()
            family = families.get(found.name)
            if family is None:
                names = ("replica",) if labels else ()
                family = _KINDS[found.type](found.name, found.help, labels=names)
                families[found.name] = family
            family.add_metric(labels, found.value)
        yield from families.values()


_KINDS: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _add_histogram(family: Any, labels: Sequence[str], histogram: Histogram) -> None:
    bounds = [*(f"{b:g}" for b in histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric(labels, buckets=buckets, sum_value=histogram.sum)
