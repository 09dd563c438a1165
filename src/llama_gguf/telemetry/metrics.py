"""The metrics: counters, histograms, and ``METRICS``, with the name, help and labels of each.

The hot path adds plain numbers. Label values come from bounded sets (routes from the table, key
ids from the file), so that no client can make them grow.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeVar, get_args

from llama_gguf.errors import CODES
from llama_gguf.http1.exchange_record import DisconnectPhase, ExchangeRecord, Usage
from llama_gguf.telemetry.batch import CACHED, COMPLETION, PROMPT, Batch
from llama_gguf.telemetry.histogram import (
    DURATION_BUCKETS,
    FIRST_BYTE_BUCKETS,
    TOKEN_BUCKETS,
    Histogram,
    Histograms,
)

Type = Literal["counter", "gauge", "histogram"]
FailureKind = Literal["connect", "no_response", "broken_off", "timeout", "engine_error"]
"""How the engine failed a request; the last is an error in a stream that it had begun."""
Result = Literal["success", "failure"]
Label = TypeVar("Label", bound=str)

OPERATION: Final = "gen_ai_operation_name"
_TOKENS: Final = (("prompt", PROMPT), ("completion", COMPLETION), ("cached", CACHED))
"""Values of the label ``type`` of the tokens, with their places in a batch's counts."""

MAX_LATEST: Final = 1024


def _zeros(labels: Iterable[Label]) -> Counter[Label]:
    """A counter with all of its labels.

    Prometheus' ``increase`` misses the first event of a series that begins with it.
    """
    return Counter(dict.fromkeys(labels, 0))


class Metrics:
    """The counters and histograms of one gateway."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.rejections: Counter[str] = _zeros(sorted(CODES))
        self.client_disconnects: Counter[DisconnectPhase] = _zeros(get_args(DisconnectPhase))
        self.rate_limited: Counter[tuple[str, str]] = Counter()
        self.backend_failures: Counter[FailureKind] = _zeros(get_args(FailureKind))
        self.replays: Counter[FailureKind] = _zeros(("no_response", "broken_off"))
        self.keys_reload: Counter[Result] = _zeros(get_args(Result))
        self.last_reload_successful: int | None = None
        """1 or 0; None before the first."""
        self.tokens: Counter[tuple[str, str]] = Counter()
        """By key id and kind."""
        self.tokens_of_all: Counter[str] = Counter()
        """By kind, since ``tokens`` has many keys to add up."""
        self.usage_unknown: Counter[str] = Counter()
        self.received_bytes = 0
        self.sent_bytes = 0
        self.queue_waits = Histogram(FIRST_BYTE_BUCKETS)
        self.first_tokens = Histograms(FIRST_BYTE_BUCKETS)
        self.output_tokens = Histograms(TOKEN_BUCKETS)
        self.durations = Histograms(DURATION_BUCKETS)
        self.latest_first_tokens: deque[float] = deque(maxlen=MAX_LATEST)
        """Seconds; the dashboard removes them when it charts them."""

    def snapshot(self) -> Metrics:
        """A copy, for a thread: what the event loop counts meanwhile does not change it."""
        made = Metrics()
        made.requests = Counter(self.requests)
        made.rejections = Counter(self.rejections)
        made.client_disconnects = Counter(self.client_disconnects)
        made.rate_limited = Counter(self.rate_limited)
        made.backend_failures = Counter(self.backend_failures)
        made.replays = Counter(self.replays)
        made.keys_reload = Counter(self.keys_reload)
        made.last_reload_successful = self.last_reload_successful
        made.tokens = Counter(self.tokens)
        made.usage_unknown = Counter(self.usage_unknown)
        made.received_bytes, made.sent_bytes = self.received_bytes, self.sent_bytes
        made.queue_waits = self.queue_waits.copy()
        made.first_tokens = self.first_tokens.copy()
        made.output_tokens = self.output_tokens.copy()
        made.durations = self.durations.copy()
        return made

    @property
    def responses(self) -> int:
        """Responses of the engine: each is in a bucket of the queue wait."""
        return sum(self.queue_waits.counts)

    def take(self, batch: Batch) -> None:
        """Count the exchanges of *batch*, and their tokens."""
        self.count(batch.records)
        for key_id, counts in batch.counts.items():
            self.count_tokens(key_id, counts)

    def count(self, ended: list[ExchangeRecord]) -> None:
        """Count finished exchanges."""
        served: list[ExchangeRecord] = []
        by_operation: dict[str, list[ExchangeRecord]] = {}
        alike = served  # those of the run's operation
        # Most in a batch are alike, and a run of those is counted at once.
        route, method, status, run = "", "", 0, 0
        received = sent = 0
        for exchange in ended:
            request = exchange.request
            is_alike = exchange.status == status and request.head.method_text == method
            if not is_alike or request.route.label != route:
                self._count_run(route, method, status, run)
                route, method = request.route.label, request.head.method_text
                status, run = exchange.status, 0
                alike = by_operation.setdefault(request.route.operation, [])
            run += 1
            received += exchange.bytes_in
            if exchange.first_byte_at:
                served.append(exchange)
                alike.append(exchange)
                sent += exchange.bytes_out
        self.received_bytes += received
        self.sent_bytes += sent
        self._count_run(route, method, status, run)
        waits = [e.queued for e in served if e.queued_at]
        self.queue_waits.observe(waits)
        self.queue_waits.counts[0] += len(served) - len(waits)  # most did not wait
        for operation, alike in by_operation.items():
            if operation and alike:
                self._count_generated(operation, alike)

    def _count_run(self, route: str, method: str, status: int, run: int) -> None:
        if run:
            self.requests[route, method, status] += run

    def _count_generated(self, operation: str, served: Sequence[ExchangeRecord]) -> None:
        self.durations[operation].observe([e.ended_at - e.started_at for e in served])
        waits = [e.first_token_at - e.started_at for e in served if e.first_token_at]
        if waits:
            self.first_tokens[operation].observe(waits)
            self.latest_first_tokens.extend(waits)
        paces = []
        for exchange in served:
            usage = exchange.usage
            if usage is not None:
                pace = seconds_per_token(exchange, usage)
                if pace is not None:
                    paces.append(pace)
                if usage.is_whole:
                    continue
            if exchange.status < 300:
                self.usage_unknown[exchange.request.route.label] += 1
        if paces:
            self.output_tokens[operation].observe(paces)

    def count_reload(self, succeeded: bool) -> None:
        """Count a load of the keys file."""
        self.keys_reload["success" if succeeded else "failure"] += 1
        self.last_reload_successful = int(succeeded)

    def count_tokens(self, key_id: str, counts: Sequence[int]) -> None:
        """Count the tokens in *counts*, which has the order of ``batch.COUNTS``."""
        for kind, place in _TOKENS:
            if counts[place]:
                self.tokens[key_id, kind] += counts[place]
                self.tokens_of_all[kind] += counts[place]


def seconds_per_token(exchange: ExchangeRecord, usage: Usage) -> float | None:
    """Of each token after the first; None if there is none, or the time is unknown."""
    if usage.completion is None or usage.completion < 2:
        return None
    # The engine's timing starts with the first token, as the gateway's does.
    behind_first = usage.completion - 1
    if usage.generating is not None:
        return usage.generating / behind_first
    if exchange.first_token_at:
        return (exchange.ended_at - exchange.first_token_at) / behind_first
    return None
