"""The metrics: counters and histograms, and all names and help texts in one table.

The hot path adds plain numbers. Label values come from bounded sets (routes from
the table, key ids from the file), so that no client can make them grow.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from llama_gguf.scheduling.exchange import Exchange
from llama_gguf.telemetry.token_usage import Usage

Type = Literal["counter", "gauge", "histogram"]


OPERATION: Final = "gen_ai_operation_name"
AUTH_FAILURES: Final = ("invalid_api_key", "key_expired")


class Format(enum.Enum):
    JSON = "json"
    PROMETHEUS = "prometheus"
    OPENMETRICS = "openmetrics"


def wanted_format(accept: bytes, query: bytes) -> Format:
    """The format of the metrics for whoever accepts *accept* and asks with *query*."""
    for part in accept.split(b","):
        # Version 0 of it is a draft: whoever wants no other takes Prometheus' text.
        if part.strip().startswith(b"application/openmetrics-text") and b"version=0" not in part:
            return Format.OPENMETRICS
    is_text = b"openmetrics" in accept or b"text/plain" in accept
    is_asked_for = b"format=prometheus" in query.split(b"&")
    return Format.PROMETHEUS if is_text or is_asked_for else Format.JSON


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineMetric:
    """One of the engine's own, as it was read last."""

    metric: Metric
    value: float


METRICS: Final = (
    Metric(
        "llama_gguf_requests",
        "counter",
        "Finished requests, by route, method and status.",
        ("route", "method", "status"),
    ),
    Metric("llama_gguf_requests_in_flight", "gauge", "Requests at the engine."),
    Metric("llama_gguf_queue_depth", "gauge", "Requests waiting for a slot."),
    Metric("llama_gguf_slots", "gauge", "Maximum number of requests at the engine at once."),
    Metric("llama_gguf_connections", "gauge", "Open client connections."),
    Metric(
        "llama_gguf_body_memory_bytes",
        "gauge",
        "Request bodies held in memory now, while they arrive or wait.",
    ),
    Metric(
        "llama_gguf_rejections",
        "counter",
        "Requests rejected by the gateway, by the code in the response.",
        ("reason",),
    ),
    Metric(
        "llama_gguf_auth_failures",
        "counter",
        "Requests with a missing, invalid or expired key; also counted as rejections.",
        ("reason",),
    ),
    Metric(
        "llama_gguf_client_disconnects",
        "counter",
        "Clients that disconnected before their response was complete, by phase.",
        ("phase",),
    ),
    Metric(
        "llama_gguf_rate_limited",
        "counter",
        "Requests rejected because of a limit of their key.",
        ("key_id", "limit"),
    ),
    Metric(
        "llama_gguf_backend_failures",
        "counter",
        "Responses that llama-server cut, refused or never began, by kind.",
        ("kind",),
    ),
    Metric(
        "llama_gguf_tokens",
        "counter",
        "Tokens as reported in the engine's responses; prompt tokens include the cached ones.",
        ("key_id", "type"),
    ),
    Metric(
        "llama_gguf_usage_unknown",
        "counter",
        "Responses without complete token usage.",
        ("route",),
    ),
    Metric("llama_gguf_received_bytes", "counter", "Bytes of request bodies."),
    Metric("llama_gguf_sent_bytes", "counter", "Bytes of the engine's responses sent to clients."),
    Metric("llama_gguf_backend_up", "gauge", "1 if the engine is ready, else 0."),
    Metric(
        "llama_gguf_backend_state",
        "gauge",
        "1 for the engine's current state, 0 for the others.",
        ("state",),
    ),
    Metric(
        "llama_gguf_backend_restarts", "counter", "llama-server restarts, by reason.", ("reason",)
    ),
    Metric(
        "llama_gguf_backend_load_seconds",
        "gauge",
        "Duration of the latest load of the model; absent before the first.",
    ),
    Metric("llama_gguf_keys_loaded", "gauge", "Loaded API keys."),
    Metric(
        "llama_gguf_keys_reload", "counter", "Reloads of the keys file, by result.", ("result",)
    ),
    Metric(
        "llama_gguf_keys_next_expiry_seconds",
        "gauge",
        "Time until the next valid key expires; absent if none expires.",
    ),
    Metric(
        "llama_gguf_build_info",
        "gauge",
        "Always 1; the labels have the versions.",
        ("version", "python"),
    ),
    Metric("llama_gguf_uptime_seconds", "gauge", "Time since the gateway started."),
    Metric("llama_gguf_queue_wait_seconds", "histogram", "Time a request waited for a slot."),
    Metric(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "For streams: time from the request's arrival to the first event with content.",
        (OPERATION,),
    ),
    Metric(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Time per token after the first: by the engine's timings, else by the gateway's clock.",
        (OPERATION,),
    ),
    Metric(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "Time from the request's arrival to the end of the engine's response.",
        (OPERATION,),
    ),
)

# Those of OpenTelemetry's GenAI conventions, continued: prompts on a CPU take longer than theirs,
# and a small model's tokens less.
FIRST_BYTE_BUCKETS: Final[tuple[float, ...]] = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0),
)
TOKEN_BUCKETS: Final[tuple[float, ...]] = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 10.0),
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


class Histograms(dict[str, Histogram]):
    """One for each operation that there was."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        super().__init__()
        self._bounds = bounds

    def __missing__(self, operation: str) -> Histogram:
        histogram = self[operation] = Histogram(self._bounds)
        return histogram


MAX_LATEST: Final = 1024


class Metrics:
    """The numbers of one gateway."""

    __slots__ = (
        "backend_failures",
        "client_disconnects",
        "durations",
        "first_tokens",
        "keys_reload",
        "latest_first_tokens",
        "output_tokens",
        "queue_waits",
        "rate_limited",
        "received_bytes",
        "rejections",
        "requests",
        "sent_bytes",
        "tokens",
        "usage_unknown",
    )

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.rejections: Counter[str] = Counter()
        self.client_disconnects: Counter[str] = Counter()
        self.rate_limited: Counter[tuple[str, str]] = Counter()
        self.backend_failures: Counter[str] = Counter()
        self.keys_reload: Counter[str] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.usage_unknown: Counter[str] = Counter()
        self.received_bytes = 0
        self.sent_bytes = 0
        self.queue_waits = Histogram(FIRST_BYTE_BUCKETS)
        self.first_tokens = Histograms(FIRST_BYTE_BUCKETS)
        self.output_tokens = Histograms(TOKEN_BUCKETS)
        self.durations = Histograms(DURATION_BUCKETS)
        self.latest_first_tokens: deque[float] = deque(maxlen=MAX_LATEST)
        """Seconds, for whoever charts them and takes them out."""

    @property
    def answered(self) -> int:
        """Requests that the engine has answered: each is in a bucket for its wait."""
        return sum(self.queue_waits.counts)

    def count(self, ended: Iterable[Exchange]) -> None:
        """Count exchanges that are over."""
        answered = []
        # Most that end together are alike, and a run of those is counted at once.
        route, method, status, run = "", "", 0, 0
        received = sent = 0
        for exchange in ended:
            request = exchange.request
            is_alike = exchange.status == status and request.head.method_text == method
            if not is_alike or request.route.label != route:
                self._count_run(route, method, status, run)
                route, method = request.route.label, request.head.method_text
                status, run = exchange.status, 0
            run += 1
            received += exchange.bytes_in
            if exchange.first_byte_at:
                answered.append(exchange)
                sent += exchange.bytes_out
        self.received_bytes += received
        self.sent_bytes += sent
        self._count_run(route, method, status, run)
        waits = [e.queued for e in answered if e.queued_at]
        self.queue_waits.observe(waits)
        self.queue_waits.counts[0] += len(answered) - len(waits)  # and most did not wait
        for operation in {e.request.route.operation for e in answered}:
            if operation:
                alike = [e for e in answered if e.request.route.operation == operation]
                self._count_generated(operation, alike)

    def _count_run(self, route: str, method: str, status: int, run: int) -> None:
        if run:
            self.requests[route, method, status] += run

    def _count_generated(self, operation: str, answered: Sequence[Exchange]) -> None:
        self.durations[operation].observe([e.ended_at - e.started_at for e in answered])
        waits = [e.first_token_at - e.started_at for e in answered if e.first_token_at]
        if waits:
            self.first_tokens[operation].observe(waits)
            self.latest_first_tokens.extend(waits)
        paces = [seconds_per_token(e, e.usage) for e in answered if e.usage is not None]
        known = [pace for pace in paces if pace is not None]
        if known:
            self.output_tokens[operation].observe(known)
        for exchange in answered:
            usage = exchange.usage
            if (usage is None or not usage.is_whole) and exchange.status < 300:
                self.usage_unknown[exchange.request.route.label] += 1

    def count_tokens(self, key_id: str, counts: Sequence[int]) -> None:
        """Count the tokens in *counts*, numbers in the order of ``ledger.COUNTS``."""
        for kind, count in zip(("prompt", "completion", "cached"), counts[2:5], strict=True):
            if count:
                self.tokens[key_id, kind] += count


def seconds_per_token(exchange: Exchange, usage: Usage) -> float | None:
    """Of each token behind the first; None when there is none, or nothing tells."""
    if usage.completion is None or usage.completion < 2:
        return None
    # The engine's own clock starts with the first token, as ours does.
    behind_first = usage.completion - 1
    if usage.generating is not None:
        return usage.generating / behind_first
    if exchange.first_token_at:
        return (exchange.ended_at - exchange.first_token_at) / behind_first
    return None


Number = float | Histogram
Sample = tuple[tuple[str, ...], Number]
"""Label values, in the order of the metric's labels, and the value."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read off the gateway at the moment of a scrape."""

    in_flight: int
    queue_depth: int
    slots: int
    connections: int
    body_memory: int
    """Bytes."""
    state: str
    states: tuple[str, ...]
    is_ready: bool
    restarts: Mapping[str, int]
    """By reason."""
    load_seconds: float | None
    keys_loaded: int
    next_expiry: float | None
    """Seconds until then."""
    version: str
    python: str
    uptime: float


def samples(metrics: Metrics, gauges: Gauges) -> dict[str, list[Sample]]:
    """Every metric of ``METRICS`` with its samples."""
    refused = metrics.rejections
    return {
        "llama_gguf_requests": [((r, m, str(s)), n) for (r, m, s), n in metrics.requests.items()],
        "llama_gguf_requests_in_flight": [((), gauges.in_flight)],
        "llama_gguf_queue_depth": [((), gauges.queue_depth)],
        "llama_gguf_slots": [((), gauges.slots)],
        "llama_gguf_connections": [((), gauges.connections)],
        "llama_gguf_body_memory_bytes": [((), gauges.body_memory)],
        "llama_gguf_rejections": _by_one_label(refused),
        "llama_gguf_auth_failures": [((r,), refused[r]) for r in AUTH_FAILURES],
        "llama_gguf_client_disconnects": _by_one_label(metrics.client_disconnects),
        "llama_gguf_rate_limited": list(metrics.rate_limited.items()),
        "llama_gguf_backend_failures": _by_one_label(metrics.backend_failures),
        "llama_gguf_tokens": list(metrics.tokens.items()),
        "llama_gguf_usage_unknown": _by_one_label(metrics.usage_unknown),
        "llama_gguf_received_bytes": [((), metrics.received_bytes)],
        "llama_gguf_sent_bytes": [((), metrics.sent_bytes)],
        "llama_gguf_backend_up": [((), int(gauges.is_ready))],
        "llama_gguf_backend_state": [((s,), int(s == gauges.state)) for s in gauges.states],
        "llama_gguf_backend_restarts": _by_one_label(gauges.restarts),
        "llama_gguf_backend_load_seconds": _if_known(gauges.load_seconds),
        "llama_gguf_keys_loaded": [((), gauges.keys_loaded)],
        "llama_gguf_keys_reload": _by_one_label(metrics.keys_reload),
        "llama_gguf_keys_next_expiry_seconds": _if_known(gauges.next_expiry),
        "llama_gguf_build_info": [((gauges.version, gauges.python), 1)],
        "llama_gguf_uptime_seconds": [((), gauges.uptime)],
        "llama_gguf_queue_wait_seconds": [((), metrics.queue_waits)],
        "gen_ai_server_time_to_first_token_seconds": _by_one_label(metrics.first_tokens),
        "gen_ai_server_time_per_output_token_seconds": _by_one_label(metrics.output_tokens),
        "gen_ai_server_request_duration_seconds": _by_one_label(metrics.durations),
    }


def _by_one_label(numbers: Mapping[str, Number]) -> list[Sample]:
    return [((value,), n) for value, n in numbers.items()]


def _if_known(number: float | None) -> list[Sample]:
    return [] if number is None else [((), number)]


def as_json(
    metrics: Metrics, gauges: Gauges, engine: Iterable[EngineMetric] = ()
) -> dict[str, object]:
    """The same for people and scripts: numbers by name, labelled ones as rows."""
    ours = {name: _plain(name, found) for name, found in samples(metrics, gauges).items()}
    return ours | {found.metric.name: found.value for found in engine}


_LABELS: Final = {m.name: m.labels for m in METRICS}


def _plain(name: str, found: Sequence[Sample]) -> object:
    labels = _LABELS[name]
    if not labels:
        return _value(found[0][1]) if found else None
    return [dict(zip(labels, values, strict=True)) | {"value": _value(n)} for values, n in found]


def _value(number: Number) -> object:
    if not isinstance(number, Histogram):
        return number
    buckets = dict(zip([f"{b:g}" for b in number.bounds], number.counts, strict=False))
    return {"count": sum(number.counts), "sum": number.sum, "buckets": buckets}
