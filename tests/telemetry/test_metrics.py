from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.exchange_record import Usage
from llama_gguf.telemetry.gauges import Gauges
from llama_gguf.telemetry.histogram import DURATION_BUCKETS, FIRST_BYTE_BUCKETS, Histogram
from llama_gguf.telemetry.metrics import Metrics, seconds_per_token
from tests.support.exchanges import finished_exchange, request_for
from tests.support.metrics_text import as_json

# Finished exchanges -------------------------------------------------------------------------------


def histogram_of(*seconds: float, bounds: tuple[float, ...] = FIRST_BYTE_BUCKETS) -> list[int]:
    histogram = Histogram(bounds)
    histogram.observe(seconds)
    return histogram.counts


def test_a_response_of_the_engine_is_counted_with_its_times_and_bytes() -> None:
    metrics = Metrics()
    metrics.count([finished_exchange(queued=0.5, first_byte=1.0, first_token=2.0, duration=3.0)])

    assert metrics.requests == {("/v1/chat/completions", "POST", 200): 1}
    assert (metrics.received_bytes, metrics.sent_bytes) == (12, 345)
    assert metrics.queue_waits.counts == histogram_of(0.5)
    assert metrics.first_tokens["chat"].counts == histogram_of(2.0)
    assert metrics.durations["chat"].counts == histogram_of(3.0, bounds=DURATION_BUCKETS)
    sums = metrics.queue_waits.sum, metrics.first_tokens["chat"].sum, metrics.durations["chat"].sum
    assert sums == (0.5, 2.0, 3.0)
    assert list(metrics.latest_first_tokens) == [2.0]


def test_a_response_that_is_no_stream_has_no_first_token() -> None:
    metrics = Metrics()
    metrics.count([finished_exchange(), finished_exchange(first_token=0.25)])

    assert sum(metrics.durations["chat"].counts) == 2
    assert metrics.first_tokens["chat"].counts == histogram_of(0.25)


def test_routes_without_an_operation_are_only_in_the_histogram_of_waits() -> None:
    metrics = Metrics()
    metrics.count([finished_exchange(request_for("GET", "/v1/models", label="/v1/models"))])

    assert (metrics.durations, metrics.first_tokens, metrics.usage_unknown) == ({}, {}, {})
    assert metrics.responses == 1


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "first_token", "seconds"),
    [
        (Usage(9, 5, 0, 0.8), None, 0.2),  # the engine's timing, which begins with the first
        (Usage(9, 5, 0, 0.8), 0.5, 0.2),
        (Usage(9, 5, 0), 0.5, 0.25),  # the gateway's, from the first event to the end at 1.5 s
        (Usage(9, 5, 0), None, None),
        (Usage(9, 1, 0, 0.001), 0.5, None),
        (Usage(9, None, None), 0.5, None),
    ],
)
def test_time_per_token_is_that_of_those_behind_the_first(
    usage: Usage, first_token: float | None, seconds: float | None
) -> None:
    exchange = finished_exchange(usage=usage, first_token=first_token, duration=1.5)
    metrics = Metrics()
    metrics.count([exchange])

    assert seconds_per_token(exchange, usage) == pytest.approx(seconds)
    assert ("chat" in metrics.output_tokens) == (seconds is not None)


def test_a_response_without_usage_is_unknown_and_an_error_is_not() -> None:
    metrics = Metrics()
    half = finished_exchange(usage=Usage(None, 2, None, is_whole=False))
    metrics.count(
        [
            finished_exchange(),
            finished_exchange(status=400),
            finished_exchange(usage=Usage(1, 2, 0)),
            half,
        ]
    )

    assert metrics.usage_unknown == {"/v1/chat/completions": 2}


def test_tokens_are_counted_by_key_and_kind() -> None:
    metrics = Metrics()
    metrics.count_tokens("alice", [1, 0, 33, 6, 32, 0])
    metrics.count_tokens("alice", [1, 0, 1, 1, 0, 0])
    metrics.count_tokens("bob", [1, 0, 4, 0, 0, 0])

    assert metrics.tokens == {
        ("alice", "prompt"): 34,
        ("alice", "completion"): 7,
        ("alice", "cached"): 32,
        ("bob", "prompt"): 4,
    }


def test_a_local_response_has_no_times_or_bytes_of_the_engine() -> None:
    metrics = Metrics()
    metrics.count([finished_exchange(status=429, first_byte=None, queued=0.5)])

    assert metrics.requests == {("/v1/chat/completions", "POST", 429): 1}
    assert (metrics.received_bytes, metrics.sent_bytes) == (12, 0)
    assert (sum(metrics.queue_waits.counts), metrics.queue_waits.sum) == (0, 0.0)
    assert (metrics.first_tokens, metrics.durations) == ({}, {})


def test_a_request_that_did_not_wait_counts_as_a_wait_of_0() -> None:
    metrics = Metrics()
    metrics.count([finished_exchange(), finished_exchange(queued=0.5), finished_exchange()])

    assert metrics.queue_waits.counts == histogram_of(0.0, 0.5, 0.0)
    assert metrics.queue_waits.sum == 0.5


def test_requests_are_counted_by_route_method_and_status() -> None:
    models = request_for("GET", "/v1/models?x=1", label="/v1/models")
    metrics = Metrics()
    metrics.count(
        [
            finished_exchange(),
            finished_exchange(models),
            finished_exchange(models),
            finished_exchange(models, status=404),
            finished_exchange(),
        ]
    )

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
        finished_exchange(
            first_byte=0.25 if is_answered else None,
            first_token=0.25 if is_answered else None,
            queued=0.125 if waited else 0.0,
            usage=Usage(4, 3, 0, 0.5) if waited else None,
        )
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
    by_operation = (metrics.first_tokens, metrics.output_tokens, metrics.durations)
    histograms = [metrics.queue_waits, *(h for kind in by_operation for h in kind.values())]
    counts = [metrics.requests, metrics.received_bytes, metrics.sent_bytes, metrics.usage_unknown]
    return [*counts, *((h.counts, h.sum) for h in histograms)]


def test_a_snapshot_has_every_number(metrics: Metrics, gauges: Gauges) -> None:
    metrics.replays["no_response"] += 1
    metrics.queue_waits.observe([0.2])

    assert as_json(metrics.snapshot(), gauges) == as_json(metrics, gauges)
