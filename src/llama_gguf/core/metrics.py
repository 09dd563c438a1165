"""What is counted, and every metric's name and help text in one table.

The hot path adds plain numbers. Label values come from bounded sets (routes from
the table, key ids from the file), so that no client can make them grow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from llama_gguf.core.exchange import Exchange

Type = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    Metric(
        "llama_gguf_requests",
        "counter",
        "Requests answered, by route, method and status.",
        ("route", "method", "status"),
    ),
    Metric("llama_gguf_requests_in_flight", "gauge", "Requests at the engine now."),
    Metric("llama_gguf_queue_depth", "gauge", "Requests waiting for a slot now."),
    Metric("llama_gguf_slots", "gauge", "Requests that may be at the engine at once."),
    Metric("llama_gguf_connections", "gauge", "Client connections open now."),
    Metric(
        "llama_gguf_rejections",
        "counter",
        "Requests refused by the gateway, by the code in the answer.",
        ("reason",),
    ),
    Metric(
        "llama_gguf_client_disconnects",
        "counter",
        "Clients that left before their answer was complete, by phase.",
        ("phase",),
    ),
    Metric(
        "llama_gguf_rate_limited",
        "counter",
        "Requests over a limit of their key.",
        ("key_id", "limit"),
    ),
    Metric(
        "llama_gguf_backend_failures",
        "counter",
        "Answers that llama-server broke off, refused or never began, by kind.",
        ("kind",),
    ),
    Metric("llama_gguf_received_bytes", "counter", "Bytes of request bodies."),
    Metric("llama_gguf_sent_bytes", "counter", "Bytes of answers of the engine passed on."),
    Metric("llama_gguf_backend_up", "gauge", "1 when the engine serves, else 0."),
    Metric("llama_gguf_backend_state", "gauge", "1 for the engine's state.", ("state",)),
    Metric("llama_gguf_keys_loaded", "gauge", "API keys loaded."),
    Metric("llama_gguf_keys_reload", "counter", "Reloads of the keys file.", ("result",)),
    Metric("llama_gguf_build", "gauge", "Always 1; the version is in the label.", ("version",)),
    Metric(
        "llama_gguf_queue_wait_seconds", "histogram", "Time a request waited before it was sent on."
    ),
    Metric(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "From the request's arrival to the first byte of the engine's answer.",
    ),
    Metric(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "From the request's arrival to the end of the engine's answer.",
    ),
)

# Those of OpenTelemetry's GenAI conventions, continued upwards: prompts on a CPU take longer.
FIRST_BYTE_BUCKETS: Final[tuple[float, ...]] = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0),
)
DURATION_BUCKETS: Final[tuple[float, ...]] = tuple(0.01 * 2**n for n in range(19))


class Histogram:
    """Counts per bucket. ``counts[-1]`` is what no bound holds.

    Args:
        bounds: upper bounds in seconds, rising.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: Sequence[float]) -> None:
        # Sorted, since looking up each bound costs less than looking up each value.
        values = sorted(seconds)
        counts = self.counts
        below = 0
        for bucket, bound in enumerate(self.bounds):
            up_to = bisect_right(values, bound)
            counts[bucket] += up_to - below
            below = up_to
            if below == len(values):
                break
        counts[-1] += len(values) - below
        self.sum += sum(values)


class Metrics:
    """The numbers of one gateway."""

    __slots__ = (
        "backend_failures",
        "client_disconnects",
        "durations",
        "first_bytes",
        "keys_reload",
        "queue_waits",
        "rate_limited",
        "received_bytes",
        "rejections",
        "requests",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.rejections: Counter[str] = Counter()
        self.client_disconnects: Counter[str] = Counter()
        self.rate_limited: Counter[tuple[str, str]] = Counter()
        self.backend_failures: Counter[str] = Counter()
        self.keys_reload: Counter[str] = Counter()
        self.received_bytes = 0
        self.sent_bytes = 0
        self.queue_waits = Histogram(FIRST_BYTE_BUCKETS)
        self.first_bytes = Histogram(FIRST_BYTE_BUCKETS)
        self.durations = Histogram(DURATION_BUCKETS)

    def count(self, ended: Iterable[Exchange]) -> None:
        """Count exchanges that are over."""
        answered = []
        # Most that end together are alike, and a run of those is counted at once.
        route, method, status, run = "", "", 0, 0
        for exchange in ended:
            request = exchange.request
            is_alike = exchange.status == status and request.head.method_text == method
            if not is_alike or request.route.label != route:
                self._count_run(route, method, status, run)
                route, method = request.route.label, request.head.method_text
                status, run = exchange.status, 0
            run += 1
            self.received_bytes += exchange.bytes_in
            if exchange.first_byte_at:
                answered.append(exchange)
                self.sent_bytes += exchange.bytes_out
        self._count_run(route, method, status, run)
        self.first_bytes.observe([e.first_byte_at - e.started_at for e in answered])
        self.durations.observe([e.ended_at - e.started_at for e in answered])
        waits = [e.queued for e in answered if e.queued_at]
        self.queue_waits.observe(waits)
        self.queue_waits.counts[0] += len(answered) - len(waits)  # and most did not wait

    def _count_run(self, route: str, method: str, status: int, run: int) -> None:
        if run:
            self.requests[route, method, status] += run


Sample = tuple[tuple[str, ...], float]
"""Label values, in the order of the metric's labels, and the value."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read off the gateway at the moment of a scrape."""

    in_flight: int
    queue_depth: int
    slots: int
    connections: int
    state: str
    states: tuple[str, ...]
    is_ready: bool
    keys_loaded: int
    version: str


def samples(metrics: Metrics, gauges: Gauges) -> dict[str, list[Sample] | Histogram]:
    """Every metric of ``METRICS`` with its samples."""
    return {
        "llama_gguf_requests": [((r, m, str(s)), n) for (r, m, s), n in metrics.requests.items()],
        "llama_gguf_requests_in_flight": [((), gauges.in_flight)],
        "llama_gguf_queue_depth": [((), gauges.queue_depth)],
        "llama_gguf_slots": [((), gauges.slots)],
        "llama_gguf_connections": [((), gauges.connections)],
        "llama_gguf_rejections": _by_one_label(metrics.rejections),
        "llama_gguf_client_disconnects": _by_one_label(metrics.client_disconnects),
        "llama_gguf_rate_limited": list(metrics.rate_limited.items()),
        "llama_gguf_backend_failures": _by_one_label(metrics.backend_failures),
        "llama_gguf_received_bytes": [((), metrics.received_bytes)],
        "llama_gguf_sent_bytes": [((), metrics.sent_bytes)],
        "llama_gguf_backend_up": [((), int(gauges.is_ready))],
        "llama_gguf_backend_state": [((s,), int(s == gauges.state)) for s in gauges.states],
        "llama_gguf_keys_loaded": [((), gauges.keys_loaded)],
        "llama_gguf_keys_reload": _by_one_label(metrics.keys_reload),
        "llama_gguf_build": [((gauges.version,), 1)],
        "llama_gguf_queue_wait_seconds": metrics.queue_waits,
        "gen_ai_server_time_to_first_token_seconds": metrics.first_bytes,
        "gen_ai_server_request_duration_seconds": metrics.durations,
    }


def _by_one_label(counter: Counter[str]) -> list[Sample]:
    return [((value,), n) for value, n in counter.items()]


def as_json(metrics: Metrics, gauges: Gauges) -> dict[str, object]:
    """The same for people and scripts: numbers by name, labelled ones as rows."""
    return {name: _plain(name, found) for name, found in samples(metrics, gauges).items()}


_LABELS: Final = {m.name: m.labels for m in METRICS}


def _plain(name: str, found: list[Sample] | Histogram) -> object:
    if isinstance(found, Histogram):
        buckets = dict(zip([f"{b:g}" for b in found.bounds], found.counts, strict=False))
        return {"count": sum(found.counts), "sum": found.sum, "buckets": buckets}
    if not _LABELS[name]:
        return found[0][1]
    return [dict(zip(_LABELS[name], values, strict=True)) | {"value": n} for values, n in found]
