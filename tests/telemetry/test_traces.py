from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from llama_gguf.events import event_of
from llama_gguf.http1.exchange_record import ExchangeRecord, Usage
from llama_gguf.http1.request import Request
from llama_gguf.telemetry.batch import Batch
from llama_gguf.telemetry.traces import Traces
from tests.support.exchanges import STARTED_AT, finished_exchange, request_for

OFFSET = 1_800_000_000.0
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
USAGE = Usage(12, 34, 5, 1.0, prompting=0.25)


class Exporter(SpanExporter):
    """Keeps the spans; ``result`` is that of each export."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.result is SpanExportResult.SUCCESS:
            self.spans += spans
        else:
            logging.getLogger("opentelemetry.exporter").error("code: %d,\nnot now", 503)
        return self.result


@pytest.fixture
def exporter() -> Exporter:
    return Exporter()


Trace = Callable[..., list[ReadableSpan]]


@pytest.fixture
def traces(exporter: Exporter) -> Iterator[Traces]:
    found = new_traces(exporter)
    yield found
    found.stop(within_seconds=30)


def new_traces(exporter: Exporter, *, requires_keys: bool = True) -> Traces:
    traces = Traces(
        exporter,
        "collector:4318",
        instance_id="here",
        requires_keys=requires_keys,
        offset=lambda: OFFSET,
    )
    traces.start()
    return traces


def spans_of(
    exporter: Exporter, *exchanges: ExchangeRecord, requires_keys: bool = True
) -> list[ReadableSpan]:
    """The spans of *exchanges*: once the thread has ended, they are complete."""
    traces = new_traces(exporter, requires_keys=requires_keys)
    traces.take(Batch(list(exchanges), OFFSET))
    traces.stop(within_seconds=30)
    return exporter.spans


def with_parent(flags: str = "01", *, version: str = "00") -> Request:
    request = request_for()
    request.head.fields.append((b"Traceparent", f"{version}-{TRACE}-{PARENT}-{flags}".encode()))
    return request


def stream(request: Request | None = None) -> ExchangeRecord:
    return finished_exchange(request, usage=USAGE, first_token=0.5, queued=0.1, duration=1.5)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_a_request_is_a_span_whose_phases_are_its_children(exporter: Exporter) -> None:
    *children, request = spans_of(exporter, stream())

    assert request.name == "POST /v1/chat/completions"
    assert request.kind is SpanKind.SERVER
    assert [child.name for child in children] == ["queue", "prefill", "decode"]
    assert all(child.parent == request.context for child in children)
    assert request.start_time == round(STARTED_AT * 1e9) + round(OFFSET * 1e9)
    assert request.end_time == round((STARTED_AT + 1.5) * 1e9) + round(OFFSET * 1e9)


def test_the_attributes_have_the_names_of_the_conventions(exporter: Exporter) -> None:
    request = spans_of(exporter, stream())[-1]

    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "network.protocol.version": "1.1",
        "client.address": "203.0.113.9",
        "http.response.status_code": 200,
        "http.request.body.size": 12,
        "http.response.body.size": 345,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 34,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "llama_gguf.key_id": "alice",
        "llama_gguf.request_id": "req-1",
    }


def test_the_resource_names_the_service_and_the_instance(exporter: Exporter) -> None:
    resource = spans_of(exporter, stream())[0].resource

    assert resource.attributes["service.name"] == "llama-gguf"
    assert resource.attributes["service.instance.id"] == "here"


def test_the_callers_trace_is_continued(exporter: Exporter) -> None:
    request = spans_of(exporter, stream(with_parent()))[-1]

    assert trace_of(request) == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT


def test_a_request_that_its_caller_does_not_sample_is_not_traced(exporter: Exporter) -> None:
    assert spans_of(exporter, stream(with_parent("00"))) == []


@pytest.mark.parametrize("version", ["ff", "zz", ""])
def test_an_invalid_parent_begins_a_trace(exporter: Exporter, version: str) -> None:
    request = spans_of(exporter, stream(with_parent(version=version)))[-1]

    assert request.parent is None
    assert trace_of(request) != TRACE


def test_requests_with_the_same_id_are_one_trace(exporter: Exporter) -> None:
    other = finished_exchange()
    other.id_bytes = b"req-2"
    first, again, third = spans_of(exporter, finished_exchange(), finished_exchange(), other)

    assert trace_of(first) == trace_of(again) != trace_of(third)


def test_requests_without_a_valid_key_leave_no_trace(exporter: Exporter) -> None:
    assert spans_of(exporter, finished_exchange(status=401, key_id="-")) == []


def test_without_keys_all_requests_are_traced(exporter: Exporter) -> None:
    assert len(spans_of(exporter, finished_exchange(key_id="-"), requires_keys=False)) == 1


@pytest.mark.parametrize(
    ("status", "outcome", "expected"),
    [
        (200, "done", StatusCode.UNSET),
        (429, "rate_limit_exceeded", StatusCode.UNSET),
        (502, "backend_error", StatusCode.ERROR),
        (200, "backend_error", StatusCode.ERROR),
        (200, "client_left:streaming", StatusCode.UNSET),
    ],
)
def test_failures_of_the_server_are_errors(
    exporter: Exporter, status: int, outcome: str, expected: StatusCode
) -> None:
    exchange = finished_exchange(status=status)
    exchange.outcome = outcome
    (request,) = spans_of(exporter, exchange)

    assert request.status.status_code is expected
    assert request.attributes is not None
    assert request.attributes.get("error.type") == (None if outcome == "done" else outcome)


def test_waiting_for_the_engine_is_a_phase(traces: Traces, exporter: Exporter) -> None:
    since = OFFSET + STARTED_AT
    traces.note_engine(serves=False, since=since - 10, model="")
    traces.note_engine(serves=True, since=since + 0.06, model="tiny")
    traces.take(Batch([stream()], OFFSET))
    traces.stop(within_seconds=30)

    assert [span.name for span in exporter.spans[:3]] == ["load", "queue", "prefill"]
    attributes = exporter.spans[-1].attributes
    assert attributes is not None
    assert attributes["gen_ai.response.model"] == "tiny"


def test_a_collector_that_fails_is_reported_once_and_its_return_too(
    traces: Traces, exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llama_gguf")
    exporter.result = SpanExportResult.FAILURE
    for _ in range(3):
        traces.take(Batch([stream()], OFFSET))

    def recover() -> None:
        exporter.result = SpanExportResult.SUCCESS

    traces._thread.run(recover)
    traces.take(Batch([stream()], OFFSET))
    traces.stop(within_seconds=30)

    ours = [event_of(r) for r in caplog.records if r.name.startswith("llama_gguf")]
    assert ours == ["traces_not_sent", "traces_sent_again"]
    assert "code: 503, not now" in caplog.text
