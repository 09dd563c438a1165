"""Traces over real sockets: a gateway, an engine, and a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import Collector
from tests.support.engines import ScriptedEngine, sse, text_event
from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEYS_TEXT
from tests.support.messages import request
from tests.support.processes import free_port, until
from tests.wire.conftest import NewGateway

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TIMINGS = {
    "cache_n": 3,
    "prompt_n": 4,
    "prompt_ms": 2.0,
    "prompt_per_token_ms": 0.5,
    "prompt_per_second": 2000.0,
    "predicted_n": 2,
    "predicted_ms": 1.5,
}
SECRET_TEXT = "a prompt that stays private"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def chat(*fields: str) -> bytes:
    body = b'{"stream": true, "prompt": "%b"}' % SECRET_TEXT.encode()
    return request("POST", "/v1/chat/completions", *fields, body=body)


def stream(gateway: GatewayProcess, engine: ScriptedEngine, *fields: str) -> bytes:
    """A complete exchange; returns the head that reached the engine."""
    with gateway.connect() as wire:
        wire.send(chat(*fields))
        visit = engine.visit()
        last = sse({"choices": [], "timings": TIMINGS})
        visit.finish(HEAD + text_event("Hel") + text_event("lo") + last + sse("[DONE]"))
        assert wire.response().status == 200
    return visit.head


def test_the_spans_of_a_stream_reach_the_collector(
    new_gateway: NewGateway, engine: ScriptedEngine, collector: Collector
) -> None:
    gateway = new_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=collector.base_url)
    stream(gateway, engine, PARENT)
    *phases, span = collector.spans(3)

    assert span.span.name == "POST /v1/chat/completions"
    assert span.span.trace_id.hex() == TRACE
    assert span.span.parent_span_id.hex() == "b7ad6b7169203331"
    assert [phase.span.name for phase in phases] == ["prefill", "decode"]
    assert {phase.span.parent_span_id for phase in phases} == {span.span.span_id}
    assert sum(phase.seconds for phase in phases) <= span.seconds + 1e-9  # as sums are rounded
    assert phases[0].seconds <= TIMINGS["prompt_ms"] / 1000 + 1e-6
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert span.resource["service.name"] == "llama-gguf"


def test_no_span_contains_a_key_or_a_prompt(
    new_gateway: NewGateway, engine: ScriptedEngine, collector: Collector
) -> None:
    gateway = new_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=collector.base_url)
    stream(gateway, engine)
    text = str(collector.spans(3))

    assert SECRET_TEXT not in text
    assert all(line.split(":")[1] not in text for line in KEYS_TEXT.splitlines() if ":" in line)


def test_the_headers_of_the_environment_go_to_the_collector_and_not_to_the_log(
    new_gateway: NewGateway, engine: ScriptedEngine, collector: Collector
) -> None:
    gateway = new_gateway(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.base_url,
        OTEL_EXPORTER_OTLP_HEADERS="x-team=our-secret-of-the-collector",
        OTEL_SERVICE_NAME="chat",
    )
    stream(gateway, engine)

    assert collector.spans(3)[0].resource["service.name"] == "chat"
    assert collector.requests[0]["x-team"] == "our-secret-of-the-collector"
    assert "our-secret" not in gateway.log


def test_the_callers_fields_reach_the_engine_unchanged(
    new_gateway: NewGateway, engine: ScriptedEngine, collector: Collector
) -> None:
    gateway = new_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=collector.base_url)

    assert PARENT.encode() in stream(gateway, engine, PARENT)
    assert b"traceparent" not in stream(gateway, engine).lower()


@pytest.mark.parametrize("fields", [(PARENT,), ()], ids=["with a parent", "without"])
def test_two_gateways_in_a_row_make_one_trace(
    new_gateway: NewGateway,
    processes: Processes,
    engine: ScriptedEngine,
    collector: Collector,
    fields: tuple[str, ...],
) -> None:
    url = collector.base_url
    behind = new_gateway(AUTH_ENABLED="false", OTEL_EXPORTER_OTLP_ENDPOINT=url)
    front = processes.gateway(("127.0.0.1", behind.port), OTEL_EXPORTER_OTLP_ENDPOINT=url)
    stream(front, engine, *fields)
    requests = [each for each in collector.spans(6) if each.span.name.startswith("POST")]

    assert len(requests) == 2
    assert len({each.span.trace_id for each in requests}) == 1


def test_a_collector_that_is_down_delays_no_request_and_is_reported_once(
    new_gateway: NewGateway, engine: ScriptedEngine
) -> None:
    gateway = new_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    for _ in range(5):
        stream(gateway, engine)
    gateway.signal(signal.SIGTERM)

    assert gateway.wait() == 0
    assert gateway.log.count("Traces are lost") <= 1


def test_a_collector_that_rejects_traces_is_reported_with_its_reason(
    new_gateway: NewGateway, engine: ScriptedEngine, collector: Collector
) -> None:
    collector.status = 401
    gateway = new_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=collector.base_url)
    stream(gateway, engine)
    until(lambda: "Traces are lost" in gateway.log, "the failure is reported")
    stream(gateway, engine)
    until(lambda: len(collector.requests) >= 2, "another request to the collector")

    assert gateway.log.count("Traces are lost") == 1
    assert "401" in gateway.log


def test_only_with_a_collector_packages_of_opentelemetry_are_loaded(
    new_gateway: NewGateway, collector: Collector
) -> None:
    gateways = new_gateway(), new_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=collector.base_url)
    maps = [Path(f"/proc/{gateway.process.pid}/maps").read_text() for gateway in gateways]

    assert [("google/_upb" in text) for text in maps] == [False, True]  # protobuf's compiled part
