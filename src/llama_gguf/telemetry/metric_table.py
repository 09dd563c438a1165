"""The name, help and labels of each metric, and where its value is read.

Imported at the first scrape, since neither the start nor a request needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from llama_gguf.telemetry.gauges import (
    Budgets,
    Gauges,
    ReplicaGauges,
    SharedLimitGauges,
    Type,
)
from llama_gguf.telemetry.histogram import Histogram
from llama_gguf.telemetry.metrics import OPERATION, Metrics


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


AUTH_FAILURES: Final = ("invalid_api_key", "key_expired")

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
