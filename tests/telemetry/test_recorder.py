from __future__ import annotations

import pytest

from llama_gguf.http1.exchange_record import ExchangeRecord, Usage
from llama_gguf.telemetry.batch import Batch
from llama_gguf.telemetry.recorder import MAX_BATCH, Recorder
from tests.support.exchanges import finished_exchange, request_for

NOW = 1_800_000_000.0


class Sink:
    """Keeps each batch."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    @property
    def records(self) -> list[list[ExchangeRecord]]:
        return [list(batch.records) for batch in self.batches]

    def take(self, batch: Batch) -> None:
        self.batches.append(batch)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def recorder(sink: Sink) -> Recorder:
    return Recorder([sink], wall=lambda: NOW)


def test_a_finished_exchange_waits_for_the_batch(recorder: Recorder, sink: Sink) -> None:
    recorder.close(finished_exchange())

    assert sink.batches == []


def test_settling_passes_on_everything_once_and_in_order(recorder: Recorder, sink: Sink) -> None:
    exchanges = [finished_exchange(status=200 + n) for n in range(5)]
    for exchange in exchanges:
        recorder.close(exchange)
    recorder.settle()
    recorder.settle()

    assert sink.records == [exchanges]
    assert sink.batches[0].now == NOW


def test_every_sink_gets_the_same_batches_in_the_order_of_the_sinks() -> None:
    order: list[str] = []

    class Named(Sink):
        def __init__(self, name: str) -> None:
            super().__init__()
            self._name = name

        def take(self, batch: Batch) -> None:
            super().take(batch)
            order.append(self._name)

    metrics, log = Named("metrics"), Named("log")
    recorder = Recorder([metrics, log], wall=lambda: NOW)
    for _ in range(2):
        recorder.close(finished_exchange())
        recorder.settle()

    assert order == ["metrics", "log"] * 2
    assert metrics.batches == log.batches


def test_a_full_batch_is_passed_on_at_once(recorder: Recorder, sink: Sink) -> None:
    for n in range(3 * MAX_BATCH + 1):
        recorder.close(finished_exchange())
        assert n + 1 - sum(map(len, sink.records)) < MAX_BATCH

    assert [len(records) for records in sink.records] == [MAX_BATCH] * 3


def test_there_is_no_empty_batch(recorder: Recorder, sink: Sink) -> None:
    recorder.settle()

    assert sink.batches == []


def test_an_exchange_that_ends_while_a_batch_is_taken_is_in_exactly_one() -> None:
    first, late = finished_exchange(), finished_exchange(status=404)

    class Reentrant(Sink):
        def take(self, batch: Batch) -> None:
            if not self.batches:
                reentered.close(late)
            super().take(batch)

    sink = Reentrant()
    reentered = Recorder([sink], wall=lambda: NOW)
    reentered.close(first)
    reentered.settle()
    reentered.settle()

    assert sink.records == [[first], [late]]


# Tokens -------------------------------------------------------------------------------------------


def with_usage(exchange: ExchangeRecord) -> ExchangeRecord:
    exchange.ending = b'{"usage":{"prompt_tokens":33,"completion_tokens":6}}'
    return exchange


def test_usage_is_read_before_the_batch_is_passed_on(recorder: Recorder, sink: Sink) -> None:
    recorder.close(with_usage(finished_exchange()))
    recorder.settle()

    batch = sink.batches[0]
    assert [exchange.usage for exchange in batch.records] == [Usage(33, 6, None)]
    assert batch.counts == {"alice": [1, 0, 33, 6, 0, 0]}


def test_usage_may_be_at_the_beginning_of_a_response(recorder: Recorder) -> None:
    exchange = finished_exchange()
    exchange.opening = b'{"usage":{"prompt_tokens":3},"data":['
    exchange.ending = b"0.1,0.2]}"
    recorder.close(exchange)
    recorder.settle()

    assert exchange.usage == Usage(3, None, None, is_whole=False)


@pytest.mark.parametrize(
    "exchange",
    [
        with_usage(finished_exchange(status=400)),
        with_usage(finished_exchange(request_for("GET", label="/props"))),
    ],
)
def test_other_occurrences_of_usage_are_ignored(
    exchange: ExchangeRecord, recorder: Recorder
) -> None:
    recorder.close(exchange)
    recorder.settle()

    assert exchange.usage is None
