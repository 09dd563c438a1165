"""Values at the time of a scrape, of the gateway and engines: ``metrics.py`` has the counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram"]
Budgets = dict[tuple[str, str], tuple[float, float, float]]
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


class EngineMetric(NamedTuple):
    """A metric of llama-server, with its latest value."""

    name: str
    type: Type
    help: str
    value: float
    replica: str = ""
    """The label of the one that it is of; empty if there is only one."""
