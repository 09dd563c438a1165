from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.core.engine import EngineState
from llama_gguf.core.metrics import (
    DURATION_BUCKETS,
    FIRST_BYTE_BUCKETS,
    METRICS,
    Gauges,
    Histogram,
    Metric,
    Metrics,
    Sample,
    as_json,
    samples,
)
from tests.exchanges import asked, ended


@pytest.fixture
def gauges() -> Gauges:
    return Gauges(
        in_flight=2,
        queue_depth=7,
        slots=4,
        connections=9,
        state=EngineState.LOADING,
        states=tuple(EngineState),
        is_ready=False,
        keys_loaded=3,
        version="1.2.3",
    )


@pytest.fixture
def metrics() -> Metrics:
    found = Metrics()
    found.requests["/v1/models", "GET", 200] += 5
    found.rejections["queue_full"] += 1
    found.client_disconnects["queued"] += 2
    found.rate_limited["alice", "requests"] += 3
    found.backend_failures["connect"] += 4
    found.keys_reload["success"] += 1
    found.received_bytes = 10
    found.sent_bytes = 20
    found.first_bytes.observe([0.3])
    return found


# The table ----------------------------------------------------------------------------------------


def test_every_metric_of_the_table_is_measured_and_nothing_else(
    metrics: Metrics, gauges: Gauges
) -> None:
    assert list(samples(metrics, gauges)) == [metric.name for metric in METRICS]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_sample_has_a_value_for_each_label_and_the_right_kind(
    metric: Metric, metrics: Metrics, gauges: Gauges
) -> None:
    found = samples(metrics, gauges)[metric.name]

    assert isinstance(found, Histogram) == (metric.type == "histogram")
    rows = list(rows_of(found))
    assert isinstance(found, Histogram) or rows
    for labels, _ in rows:
        assert len(labels) == len(metric.labels)
        assert all(isinstance(label, str) for label in labels)


def rows_of(found: list[Sample] | Histogram) -> Iterator[Sample]:
    if not isinstance(found, Histogram):
        yield from found


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_and_labels_are_what_prometheus_takes(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert not metric.name.endswith("_total")  # the exposition adds it
    assert metric.help.endswith(".")
    assert metric.type != "histogram" or metric.name.endswith("_seconds")


# Gauges -------------------------------------------------------------------------------------------


def test_exactly_the_state_of_the_engine_is_1(metrics: Metrics, gauges: Gauges) -> None:
    states = dict(rows_of(samples(metrics, gauges)["llama_gguf_backend_state"]))

    assert {labels for labels, value in states.items() if value} == {("loading",)}
    assert len(states) == len(EngineState)


def test_an_autoscaler_sees_what_waits_and_what_runs(metrics: Metrics, gauges: Gauges) -> None:
    found = as_json(metrics, gauges)

    assert found["llama_gguf_queue_depth"] == 7
    assert found["llama_gguf_requests_in_flight"] == 2
    assert found["llama_gguf_backend_up"] == 0


# Histograms ---------------------------------------------------------------------------------------


@given(seconds=st.floats(0, 1e5))
def test_an_observation_is_in_the_first_bucket_that_holds_it(seconds: float) -> None:
    histogram = Histogram(FIRST_BYTE_BUCKETS)

    histogram.observe([seconds])

    place = histogram.counts.index(1)
    bounds = (*FIRST_BYTE_BUCKETS, float("inf"))
    assert seconds <= bounds[place]
    assert place == 0 or seconds > bounds[place - 1]
    assert (sum(histogram.counts), histogram.sum) == (1, seconds)


def test_a_bound_belongs_to_its_own_bucket() -> None:  # "le" means less than or equal
    histogram = Histogram((1.0, 2.0))
    histogram.observe([1.0, 2.0, 2.5])

    assert histogram.counts == [1, 1, 1]


@given(seconds=st.lists(st.integers(0, 4000).map(lambda eighths: eighths / 8), max_size=30))
def test_observations_count_alike_together_and_one_by_one(seconds: list[float]) -> None:
    together, one_by_one = Histogram(FIRST_BYTE_BUCKETS), Histogram(FIRST_BYTE_BUCKETS)
    together.observe(seconds)
    for value in seconds:
        one_by_one.observe([value])

    assert (together.counts, together.sum) == (one_by_one.counts, one_by_one.sum)
    assert (sum(together.counts), together.sum) == (len(seconds), sum(seconds))


@pytest.mark.parametrize("bounds", [FIRST_BYTE_BUCKETS, DURATION_BUCKETS])
def test_bounds_rise_and_are_told_apart_when_they_are_printed(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert len({f"{bound:g}" for bound in bounds}) == len(bounds)
    assert bounds[-1] >= 300  # a long prompt on a CPU, an answer up to REQUEST_TIMEOUT


# Exchanges that are over --------------------------------------------------------------------------


def histogram_of(*seconds: float, bounds: tuple[float, ...] = FIRST_BYTE_BUCKETS) -> list[int]:
    histogram = Histogram(bounds)
    histogram.observe(seconds)
    return histogram.counts


def test_an_answer_of_the_engine_is_counted_with_its_times_and_its_bytes() -> None:
    metrics = Metrics()
    metrics.count([ended(queued=0.5, first_byte=2.0, duration=3.0)])

    assert metrics.requests == {("/v1/chat/completions", "POST", 200): 1}
    assert (metrics.received_bytes, metrics.sent_bytes) == (12, 345)
    assert metrics.queue_waits.counts == histogram_of(0.5)
    assert metrics.first_bytes.counts == histogram_of(2.0)
    assert metrics.durations.counts == histogram_of(3.0, bounds=DURATION_BUCKETS)
    sums = metrics.queue_waits.sum, metrics.first_bytes.sum, metrics.durations.sum
    assert sums == (0.5, 2.0, 3.0)


def test_an_answer_of_our_own_has_no_times_and_no_bytes_of_the_engine() -> None:
    metrics = Metrics()
    metrics.count([ended(status=429, first_byte=None, queued=0.5)])

    assert metrics.requests == {("/v1/chat/completions", "POST", 429): 1}
    assert (metrics.received_bytes, metrics.sent_bytes) == (12, 0)
    for histogram in (metrics.queue_waits, metrics.first_bytes, metrics.durations):
        assert (sum(histogram.counts), histogram.sum) == (0, 0.0)


def test_whoever_did_not_wait_counts_as_a_wait_of_no_time() -> None:
    metrics = Metrics()
    metrics.count([ended(), ended(queued=0.5), ended()])

    assert metrics.queue_waits.counts == histogram_of(0.0, 0.5, 0.0)
    assert metrics.queue_waits.sum == 0.5


def test_requests_are_told_apart_by_route_method_and_status() -> None:
    models = asked("GET", "/v1/models?x=1", label="/v1/models")
    metrics = Metrics()
    metrics.count([ended(), ended(models), ended(models), ended(models, status=404), ended()])

    assert metrics.requests == {
        ("/v1/chat/completions", "POST", 200): 2,
        ("/v1/models", "GET", 200): 2,
        ("/v1/models", "GET", 404): 1,
    }


@given(
    sizes=st.lists(st.integers(0, 3), max_size=8),
    kinds=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20),
)
def test_it_makes_no_difference_how_many_are_counted_at_once(
    sizes: list[int], kinds: list[tuple[bool, bool]]
) -> None:
    exchanges = [
        ended(first_byte=0.25 if is_answered else None, queued=0.125 if waited else 0.0)
        for is_answered, waited in kinds
    ]
    together, in_parts = Metrics(), Metrics()
    together.count(exchanges)
    left = list(exchanges)
    for size in sizes:
        in_parts.count(left[:size])
        left = left[size:]
    in_parts.count(left)

    assert plain(in_parts) == plain(together)


def plain(metrics: Metrics) -> list[object]:
    histograms = (metrics.queue_waits, metrics.first_bytes, metrics.durations)
    counts = [metrics.requests, metrics.received_bytes, metrics.sent_bytes]
    return [*counts, *((h.counts, h.sum) for h in histograms)]


# JSON ---------------------------------------------------------------------------------------------


def test_json_has_plain_numbers_by_name_and_labelled_ones_as_rows(
    metrics: Metrics, gauges: Gauges
) -> None:
    found = json.loads(json.dumps(as_json(metrics, gauges)))

    assert found["llama_gguf_sent_bytes"] == 20
    assert found["llama_gguf_requests"] == [
        {"route": "/v1/models", "method": "GET", "status": "200", "value": 5}
    ]
    assert found["llama_gguf_rate_limited"] == [
        {"key_id": "alice", "limit": "requests", "value": 3}
    ]
    first_byte = found["gen_ai_server_time_to_first_token_seconds"]
    assert (first_byte["count"], first_byte["sum"]) == (1, 0.3)
    assert first_byte["buckets"]["0.5"] == 1
    assert sum(first_byte["buckets"].values()) == 1


def test_what_no_bound_holds_still_counts_in_json(metrics: Metrics, gauges: Gauges) -> None:
    metrics.durations.observe([1e6])

    found = as_json(metrics, gauges)["gen_ai_server_request_duration_seconds"]

    assert isinstance(found, dict)
    assert found["count"] == 1


def test_a_gateway_that_has_done_nothing_has_metrics_too(gauges: Gauges) -> None:
    found = as_json(Metrics(), gauges)

    assert found["llama_gguf_requests"] == []
    assert found["llama_gguf_sent_bytes"] == 0
