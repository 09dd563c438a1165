"""The metrics: counters, histograms, and ``METRICS``, with the name, help and labels of each.

The hot path adds plain numbers. Label values come from bounded sets (routes from the table, key
ids from the file), so that no client can make them grow.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args

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
AUTH_FAILURES: Final = ("invalid_api_key", "key_expired")
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


Budgets = Mapping[tuple[str, str], tuple[float, float, float]]
"""By key id and window: limit, used, remaining."""


class Gauges(NamedTuple):
    """Values of the gateway at the time of a scrape."""

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
    is_degraded: bool
    """Whether the engine lacks a device."""
    load_seconds: float | None
    keys_loaded: int
    next_expiry: float | None
    """Seconds until then."""
    version: str
    python: str
    uptime: float
    token_budgets: Budgets
    engine_budgets: Budgets
    """In seconds."""
    replicas: tuple[ReplicaGauges, ...] = ()
    session_moves: Mapping[str, int] = {}
    """To another replica, by reason."""
    prompt_cache: Mapping[str, Any] | None = None
    """What is known of saved prompts; None unless PROMPT_CACHE is on."""
    shared_limits: SharedLimitGauges | None = None
    """None without SHARED_LIMITS."""


class SharedLimitGauges(NamedTuple):
    """Values of the server by which several gateways share limits."""

    is_up: bool
    gateways: int
    outages: int
    local_decisions: int


class ReplicaGauges(NamedTuple):
    """Values of one replica."""

    label: str
    state: str
    is_up: bool
    """Whether it gets requests."""
    slots: int
    running: int
    responses: int
    errors: int
    refusals: int
    ejections: Mapping[str, int]
    """By reason."""
    cached_ratio: float | None
    """Of the prompt's tokens."""


def _of_replicas(
    value: Callable[[ReplicaGauges], float | None],
) -> Callable[[Metrics, Gauges], Value]:
    """The sum of *value* by label: while one is replaced, two engines have the same label."""

    def read(_: Metrics, gauges: Gauges) -> Value:
        sums: Counter[str] = Counter()
        for each in gauges.replicas:
            number = value(each)
            if number is not None:
                sums[each.label] += number  # type: ignore[assignment]  # may be a float
        return sums

    return read


def _of_shared_limits(
    value: Callable[[SharedLimitGauges], int],
) -> Callable[[Metrics, Gauges], Value]:
    return lambda _, g: None if g.shared_limits is None else value(g.shared_limits)


def _ratios(_: Metrics, gauges: Gauges) -> Value:
    return {
        each.label: each.cached_ratio for each in gauges.replicas if each.cached_ratio is not None
    }


def _ejections(_: Metrics, gauges: Gauges) -> Value:
    sums: Counter[tuple[str, str]] = Counter()
    for each in gauges.replicas:
        for reason, count in each.ejections.items():
            sums[each.label, reason] += count
    return sums


def _prompts(name: str) -> Callable[[Metrics, Gauges], Value]:
    return lambda _, g: None if g.prompt_cache is None else g.prompt_cache[name]


def _prompt_results(name: str) -> Callable[[Metrics, Gauges], Value]:
    def read(_: Metrics, gauges: Gauges) -> Value:
        facts = gauges.prompt_cache
        if facts is None:
            return None
        return {"success": facts[f"{name}s"], "failure": facts[f"{name}_failures"]}

    return read


def _states(_: Metrics, gauges: Gauges) -> Value:
    return {(each.label, each.state): 1 for each in gauges.replicas}


Number = float | Histogram
Value = Number | Mapping[Any, Number] | None
"""A number; with labels, one number for each value of the label, or tuple of values; None while
there is nothing to report."""
Sample = tuple[tuple[str, ...], Number]
"""Label values, in the order of the metric's labels, and the number."""


class Metric:
    """A metric as it is exposed, and where its value is read."""

    def __init__(
        self,
        name: str,
        type: Type,
        help: str,
        read: Callable[[Metrics, Gauges], Value],
        labels: tuple[str, ...] = (),
    ) -> None:
        self.name: Final = name
        self.type: Final = type
        self.help: Final = help
        self.read: Final = read
        self.labels: Final = labels

    def samples(self, metrics: Metrics, gauges: Gauges) -> list[Sample]:
        value = self.read(metrics, gauges)
        if value is None:
            return []
        if isinstance(value, Mapping):
            return [(_label_values(key), number) for key, number in value.items()]
        return [((), value)]


def _label_values(key: object) -> tuple[str, ...]:
    return tuple(map(str, key)) if isinstance(key, tuple) else (str(key),)


class EngineMetric(NamedTuple):
    """A metric of llama-server, with its latest value."""

    name: str
    type: Type
    help: str
    value: float
    replica: str = ""
    """The label of the one that it is of; empty if there is only one."""


def _budget_metrics(unit: str, words: str, of: Callable[[Gauges], Budgets]) -> list[Metric]:
    """The three metrics of the budgets in one unit."""

    def one_of(place: int) -> Callable[[Metrics, Gauges], Value]:
        return lambda _, g: {key: numbers[place] for key, numbers in of(g).items()}

    helps = {
        "limit": f"Limit of {words} in the window, of a key with such a budget.",
        "used": f"Used {words} in the current window; estimates for running requests included.",
        "remaining": f"Remaining {words} in the current window.",
    }
    return [
        Metric(f"llama_gguf_budget_{what}_{unit}", "gauge", text, one_of(n), ("key_id", "window"))
        for n, (what, text) in enumerate(helps.items())
    ]


METRICS: Final = (
    Metric(
        "llama_gguf_requests",
        "counter",
        "Finished requests, by route, method and status.",
        lambda m, _: m.requests,
        ("route", "method", "status"),
    ),
    Metric(
        "llama_gguf_requests_in_flight",
        "gauge",
        "Requests at the engine.",
        lambda _, g: g.in_flight,
    ),
    Metric(
        "llama_gguf_queue_depth",
        "gauge",
        "Requests waiting for a slot.",
        lambda _, g: g.queue_depth,
    ),
    Metric(
        "llama_gguf_slots",
        "gauge",
        "Maximum number of requests at the engine at once.",
        lambda _, g: g.slots,
    ),
    Metric(
        "llama_gguf_slots_used_ratio",
        "gauge",
        "Part of the slots, and so of the divided context, that requests occupy; 1 without slots.",
        lambda _, g: g.in_flight / g.slots if g.slots else 1.0,
    ),
    Metric(
        "llama_gguf_connections",
        "gauge",
        "Open client connections.",
        lambda _, g: g.connections,
    ),
    Metric(
        "llama_gguf_body_memory_bytes",
        "gauge",
        "Request bodies held in memory now, while they arrive or wait.",
        lambda _, g: g.body_memory,
    ),
    Metric(
        "llama_gguf_rejections",
        "counter",
        "Error responses sent by the gateway, by code.",
        lambda m, _: m.rejections,
        ("reason",),
    ),
    Metric(
        "llama_gguf_auth_failures",
        "counter",
        "Requests with a missing, invalid or expired key; also counted as rejections.",
        lambda m, _: {r: m.rejections[r] for r in AUTH_FAILURES},
        ("reason",),
    ),
    Metric(
        "llama_gguf_client_disconnects",
        "counter",
        "Clients that disconnected before their response was complete, by phase.",
        lambda m, _: m.client_disconnects,
        ("phase",),
    ),
    Metric(
        "llama_gguf_rate_limited",
        "counter",
        "Requests rejected because of a limit of their key.",
        lambda m, _: m.rate_limited,
        ("key_id", "limit"),
    ),
    Metric(
        "llama_gguf_backend_failures",
        "counter",
        "Responses that llama-server cut, refused, never began or ended with an error event, "
        "by kind.",
        lambda m, _: m.backend_failures,
        ("kind",),
    ),
    Metric(
        "llama_gguf_replays",
        "counter",
        "Requests sent again after such a failure, of which the client noticed nothing, by kind.",
        lambda m, _: m.replays,
        ("kind",),
    ),
    Metric(
        "llama_gguf_tokens",
        "counter",
        "Tokens as reported in the engine's responses; prompt tokens include the cached ones.",
        lambda m, _: m.tokens,
        ("key_id", "type"),
    ),
    *_budget_metrics("tokens", "tokens", lambda g: g.token_budgets),
    *_budget_metrics("engine_seconds", "engine-seconds", lambda g: g.engine_budgets),
    Metric(
        "llama_gguf_usage_unknown",
        "counter",
        "Responses without complete token usage.",
        lambda m, _: m.usage_unknown,
        ("route",),
    ),
    Metric(
        "llama_gguf_received_bytes",
        "counter",
        "Bytes of request bodies.",
        lambda m, _: m.received_bytes,
    ),
    Metric(
        "llama_gguf_sent_bytes",
        "counter",
        "Bytes of the engine's responses sent to clients.",
        lambda m, _: m.sent_bytes,
    ),
    Metric(
        "llama_gguf_backend_up",
        "gauge",
        "1 if the engine is ready, else 0.",
        lambda _, g: int(g.is_ready),
    ),
    Metric(
        "llama_gguf_backend_state",
        "gauge",
        "1 for the engine's current state, 0 for the others.",
        lambda _, g: {state: int(state == g.state) for state in g.states},
        ("state",),
    ),
    Metric(
        "llama_gguf_backend_restarts",
        "counter",
        "llama-server restarts, by reason.",
        lambda _, g: g.restarts,
        ("reason",),
    ),
    Metric(
        "llama_gguf_backend_degraded",
        "gauge",
        "1 if the engine's latest start lacked a device that an earlier one had, else 0.",
        lambda _, g: int(g.is_degraded),
    ),
    Metric(
        "llama_gguf_backend_load_seconds",
        "gauge",
        "Duration of the latest load of the model; absent before the first.",
        lambda _, g: g.load_seconds,
    ),
    Metric(
        "llama_gguf_keys_loaded",
        "gauge",
        "Loaded API keys.",
        lambda _, g: g.keys_loaded,
    ),
    Metric(
        "llama_gguf_keys_reload",
        "counter",
        "Reloads of the keys file, by result.",
        lambda m, _: m.keys_reload,
        ("result",),
    ),
    Metric(
        "llama_gguf_keys_last_reload_successful",
        "gauge",
        "1 if the last reload of the keys file succeeded, else 0; absent without authentication.",
        lambda m, _: m.last_reload_successful,
    ),
    Metric(
        "llama_gguf_keys_next_expiry_seconds",
        "gauge",
        "Time until the next valid key expires; absent if none expires.",
        lambda _, g: g.next_expiry,
    ),
    Metric(
        "llama_gguf_build_info",
        "gauge",
        "Always 1; the labels have the versions.",
        lambda _, g: {(g.version, g.python): 1},
        ("version", "python"),
    ),
    Metric(
        "llama_gguf_uptime_seconds",
        "gauge",
        "Time since the gateway started.",
        lambda _, g: g.uptime,
    ),
    Metric(
        "llama_gguf_replica_up",
        "gauge",
        "1 if the replica gets requests, else 0.",
        _of_replicas(lambda each: each.is_up),
        ("replica",),
    ),
    Metric(
        "llama_gguf_replica_state",
        "gauge",
        "Always 1, with the state that the replica is in.",
        _states,
        ("replica", "state"),
    ),
    Metric(
        "llama_gguf_replica_slots",
        "gauge",
        "Requests that the replica may have at once now.",
        _of_replicas(lambda each: each.slots),
        ("replica",),
    ),
    Metric(
        "llama_gguf_replica_running",
        "gauge",
        "Requests at the replica that use a slot.",
        _of_replicas(lambda each: each.running),
        ("replica",),
    ),
    Metric(
        "llama_gguf_replica_responses",
        "counter",
        "Responses of the replica.",
        _of_replicas(lambda each: each.responses),
        ("replica",),
    ),
    Metric(
        "llama_gguf_replica_errors",
        "counter",
        "Responses of the replica with a status from 500 on.",
        _of_replicas(lambda each: each.errors),
        ("replica",),
    ),
    Metric(
        "llama_gguf_replica_refusals",
        "counter",
        "Requests that the replica refused, and that were sent to another one.",
        _of_replicas(lambda each: each.refusals),
        ("replica",),
    ),
    Metric(
        "llama_gguf_replica_ejections",
        "counter",
        "Times that the replica got no requests because of its failures, by reason.",
        _ejections,
        ("replica", "reason"),
    ),
    Metric(
        "llama_gguf_session_moves",
        "counter",
        "Sessions that moved to another replica, by reason.",
        lambda _, g: g.session_moves,
        ("reason",),
    ),
    Metric(
        "llama_gguf_shared_limits_up",
        "gauge",
        "Whether the server of SHARED_LIMITS can be used.",
        _of_shared_limits(lambda shared: int(shared.is_up)),
    ),
    Metric(
        "llama_gguf_shared_limits_gateways",
        "gauge",
        "Gateways that share limits, this one included.",
        _of_shared_limits(lambda shared: shared.gateways),
    ),
    Metric(
        "llama_gguf_shared_limits_outages",
        "counter",
        "Times that the server of SHARED_LIMITS was lost.",
        _of_shared_limits(lambda shared: shared.outages),
    ),
    Metric(
        "llama_gguf_shared_limits_local_decisions",
        "counter",
        "Checks of a limit while the server could not be used: SHARED_LIMITS_OUTAGE decided.",
        _of_shared_limits(lambda shared: shared.local_decisions),
    ),
    Metric(
        "llama_gguf_prompt_cached_ratio",
        "gauge",
        "Part of the prompts' tokens that was in the replica's cache, over the last minutes.",
        _ratios,
        ("replica",),
    ),
    Metric(
        "llama_gguf_prompt_cache_bytes",
        "gauge",
        "Size of all saved prompts on disk; absent unless PROMPT_CACHE is on.",
        _prompts("bytes"),
    ),
    Metric(
        "llama_gguf_prompt_cache_saves",
        "counter",
        "Prompts of slots that were saved, by result.",
        _prompt_results("save"),
        ("result",),
    ),
    Metric(
        "llama_gguf_prompt_cache_restores",
        "counter",
        "Saved prompts that were restored when an engine started, by result.",
        _prompt_results("restore"),
        ("result",),
    ),
    Metric(
        "llama_gguf_prompt_cache_spared_tokens",
        "counter",
        "Prompt tokens that were not computed because their conversation had been restored.",
        _prompts("spared_tokens"),
    ),
    Metric(
        "llama_gguf_prompt_cache_spared_seconds",
        "counter",
        "Time that these tokens would have taken, by the engine's rate when they were saved.",
        _prompts("spared_seconds"),
    ),
    Metric(
        "llama_gguf_queue_wait_seconds",
        "histogram",
        "Time a request waited for a slot.",
        lambda m, _: m.queue_waits,
    ),
    Metric(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "For streams: time from the request's arrival to the first event with content.",
        lambda m, _: m.first_tokens,
        (OPERATION,),
    ),
    Metric(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Time per token after the first: by the engine's timings, else by the gateway's clock.",
        lambda m, _: m.output_tokens,
        (OPERATION,),
    ),
    Metric(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "Time from the request's arrival to the end of the engine's response.",
        lambda m, _: m.durations,
        (OPERATION,),
    ),
)
