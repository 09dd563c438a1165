"""An OpenTelemetry collector on a thread: it receives traces by OTLP over HTTP."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.processes import until
from tests.support.servers import Handler, Server

SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Traced:
    """One span, with the attributes of its resource."""

    span: Span
    resource: dict[str, object] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, object]:
        return attributes(self.span.attributes)

    @property
    def seconds(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / SECOND


class Collector(Server):
    """Keeps all spans that it gets.

    ``status`` is that of its responses: it keeps nothing while that is not 200.
    """

    def __init__(self) -> None:
        super().__init__(_Receiver)
        self.status = 200
        self.found: list[Traced] = []
        self.requests: list[dict[str, str]] = []
        """The header fields of each request, by their names in lower case."""

    def spans(self, count: int) -> list[Traced]:
        """The spans, once there are at least *count*."""
        until(lambda: len(self.found) >= count, lambda: f"{count} spans, not {self.names}")
        return list(self.found)

    @property
    def names(self) -> list[str]:
        return [each.span.name for each in self.found]


class _Receiver(Handler):
    def do_POST(self) -> None:
        collector = self.server
        assert isinstance(collector, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        is_ours = self.path == "/v1/traces"
        status = collector.status if is_ours else 404
        collector.requests.append({k.lower(): v for k, v in self.headers.items()})
        if status == 200:
            received = ExportTraceServiceRequest.FromString(body)
            collector.found += [
                Traced(span, attributes(resources.resource.attributes))
                for resources in received.resource_spans
                for scope in resources.scope_spans
                for span in scope.spans
            ]
        response = ExportTraceServiceResponse().SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)


def attributes(found: object) -> dict[str, object]:
    """OTLP's attributes as a mapping."""
    values: dict[str, object] = {}
    for pair in found:  # type: ignore[attr-defined]
        assert isinstance(pair, KeyValue)
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        values[pair.key] = getattr(pair.value, kind)
    return values
