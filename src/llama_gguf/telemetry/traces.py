"""Traces of exchanges with the engine, by OTLP over HTTP, with OpenTelemetry's SDK (``[otel]``).

Imported only if an endpoint is set. The spans of an exchange are made after its end, from its
record, on a thread that also sends them; the gateway's loop only queues the batch. Attributes have
the names of OpenTelemetry's semantic conventions, where there is one. None of them is a secret, or
contains text of a client other than the path.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llama_gguf import __version__
from llama_gguf.events import EventLog
from llama_gguf.files.writer_thread import WriterThread
from llama_gguf.http1.exchange_record import ExchangeRecord
from llama_gguf.http1.fields import find
from llama_gguf.http1.routes import Kind
from llama_gguf.telemetry.batch import Batch
from llama_gguf.telemetry.phases import Outages, phases

_log: Final = EventLog(__name__)

MAX_WAITING_BYTES: Final = 16 << 20
"""Of exchanges that are queued and not sent yet: the memory that a hanging collector may cost."""
EXCHANGE_BYTES: Final = 8192
"""About what the record of an exchange with its head and the ends of its response costs."""

PROVIDER: Final = "llama.cpp"
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NANOSECONDS: Final = 1_000_000_000


class Traces:
    """The ``telemetry.batch.ExchangeSink`` for traces.

    Args:
        exporter: sends spans to the collector.
        collector: its address, for messages.
        instance_id: of this gateway.
        requires_keys: whether requests without a valid key are rejected. They leave no trace, so
            that they cannot fill a collector.
        offset: returns what to add to a time of an exchange to get POSIX seconds.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        collector: str,
        *,
        instance_id: str,
        requires_keys: bool,
        offset: Callable[[], float],
    ) -> None:
        self._exporter = exporter
        self._collector = collector
        self._requires_keys = requires_keys
        self._offset = offset
        self._outages = Outages()
        self._spans = _Finished()
        self._ids = _Ids()
        self.model = ""
        """The name of the engine's model."""
        named = {SERVICE_NAME: "llama-gguf", SERVICE_INSTANCE_ID: instance_id}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        resource = Resource.create({**named, **OTELResourceDetector().detect().attributes})
        provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(self._spans)
        self._tracer = provider.get_tracer("llama_gguf.gateway", __version__)
        self._is_failing = False
        self._complaint = _Complaint()
        self._thread = WriterThread("traces", max_bytes=MAX_WAITING_BYTES, on_lost=self._on_lost)

    def start(self) -> None:
        # The exporter would log each failure: the last one is the reason in our own event.
        _exporters().addHandler(self._complaint)
        _exporters().propagate = False
        self._thread.start()

    def note_engine(self, *, serves: bool, since: float, model: str) -> None:
        """Note the engine's present state, which began at *since*, in POSIX seconds."""
        self.model = model
        self._outages.note(serves=serves, since=since - self._offset())

    def take(self, batch: Batch) -> None:
        """As ``ExchangeSink.take``."""
        traced = [exchange for exchange in batch.records if self._is_traced(exchange)]
        if traced:
            size = EXCHANGE_BYTES * len(traced)
            job = partial(self._send, traced, self._outages.all(), self._offset())
            self._thread.write(job, size=size, lines=len(traced))

    def _is_traced(self, exchange: ExchangeRecord) -> bool:
        route = exchange.request.route
        is_known = exchange.key_id != "-" or not self._requires_keys
        return route.kind is Kind.PROXIED and not route.needs_no_key and is_known

    def stop(self, within_seconds: float) -> None:
        """Send what is queued, but only for *within_seconds*."""
        self._thread.close(within_seconds)
        self._exporter.shutdown()
        _exporters().removeHandler(self._complaint)
        _exporters().propagate = True

    # On the thread ------------------------------------------------------------------------------

    def _send(
        self,
        exchanges: list[ExchangeRecord],
        outages: Sequence[tuple[float, float]],
        offset: float,
    ) -> None:
        for exchange in exchanges:
            self._trace(exchange, outages, offset)
        spans = self._spans.taken()
        if not spans:
            return
        is_sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        if is_sent and self._is_failing:
            _log.info(
                "traces_sent_again",
                "The collector at {collector} accepts traces again",
                collector=self._collector,
            )
        elif not is_sent and not self._is_failing:
            _log.warning(
                "traces_not_sent",
                "Traces are lost, because {collector} does not accept them: {reason}",
                collector=self._collector,
                reason=self._complaint.text or "unknown reason",
            )
        self._is_failing = not is_sent

    def _trace(
        self, exchange: ExchangeRecord, outages: Sequence[tuple[float, float]], offset: float
    ) -> None:
        route = exchange.request.route

        def nanoseconds(moment: float) -> int:
            # The sum as a float would be exact to a quarter of a microsecond only.
            return round(moment * _NANOSECONDS) + round(offset * _NANOSECONDS)

        self._ids.request_id = exchange.id_bytes
        span = self._tracer.start_span(
            f"{exchange.method} {route.label}",
            _PROPAGATOR.extract(_trace_fields(exchange)),
            SpanKind.SERVER,
            _attributes(exchange, self.model),
            start_time=nanoseconds(exchange.started_at),
        )
        if not span.is_recording():
            return
        if exchange.status >= 500 or _was_cut(exchange):
            span.set_status(Status(StatusCode.ERROR))
        inside = trace.set_span_in_context(span)
        for phase in phases(exchange, outages):
            child = self._tracer.start_span(phase.name, inside, start_time=nanoseconds(phase.begin))
            child.end(nanoseconds(phase.end))
        span.end(nanoseconds(exchange.ended_at))

    def _on_lost(self, exchanges: int) -> None:
        _log.warning(
            "traces_lost",
            "Traces of {exchanges} requests were lost, because the collector at {collector} is "
            "too slow, or did not respond",
            exchanges=exchanges,
            collector=self._collector,
        )


def _exporters() -> logging.Logger:
    return logging.getLogger("opentelemetry")  # noqa: TID251  # another library's


def exporter_to(endpoint: str) -> SpanExporter:
    """An exporter to the collector with the base URL *endpoint*.

    All else (headers, certificates, compression) is in OpenTelemetry's own variables.
    """
    return OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")


def _trace_fields(exchange: ExchangeRecord) -> Mapping[str, str]:
    fields = exchange.request.head.fields
    found = [(name, find(fields, name.encode())) for name in _PROPAGATOR.fields]
    return {name: value.decode("latin-1") for name, value in found if value is not None}


def _was_cut(exchange: ExchangeRecord) -> bool:
    """Whether the response broke off after its head; a client that left is no error of ours."""
    is_done = exchange.outcome == "done" or exchange.outcome.startswith("client_left")
    return exchange.status < 400 and not is_done


def _attributes(exchange: ExchangeRecord, model: str) -> dict[str, str | int | float]:
    route, usage, head = exchange.request.route, exchange.usage, exchange.request.head
    found: dict[str, str | int | float | None] = {
        "http.request.method": exchange.method,
        "http.route": route.label if route.label.startswith("/") else None,
        "url.path": exchange.path,
        "network.protocol.version": head.version,
        "client.address": exchange.address,
        "http.response.status_code": exchange.status or None,
        "http.request.body.size": exchange.bytes_in,
        "http.response.body.size": exchange.bytes_out,
        "error.type": None if exchange.outcome == "done" else exchange.outcome,
        "gen_ai.operation.name": route.operation or None,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.response.model": model or None,
        "gen_ai.response.time_to_first_chunk": exchange.first_token or None,
        "llama_gguf.key_id": exchange.key_id,
        "llama_gguf.request_id": exchange.request_id,
        "llama_gguf.replays": exchange.replays or None,
    }
    if usage is not None:
        found["gen_ai.usage.input_tokens"] = usage.prompt
        found["gen_ai.usage.output_tokens"] = usage.completion
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached
    return {name: value for name, value in found.items() if value is not None}


class _Ids(RandomIdGenerator):
    """Makes the id of a trace without a parent from the request id.

    A gateway in front of a gateway forwards the request id: both make the same trace of it.
    """

    def __init__(self) -> None:
        self.request_id = b""

    def generate_trace_id(self) -> int:
        digest = hashlib.sha256(self.request_id).digest()
        return int.from_bytes(digest[:16]) or 1  # 0 is invalid

    def is_trace_id_random(self) -> bool:
        return False  # a client may choose the request id


class _Finished(SpanProcessor):
    """Keeps the spans that have ended, until they are taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def taken(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


class _Complaint(logging.Handler):
    """Keeps the exporter's last message."""

    MAX_CHARACTERS: Final = 300

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        self.text = text[: self.MAX_CHARACTERS]
