"""What people and metrics see of each replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_gguf.engines.status import ChildState
from llama_gguf.scheduling.standing import State
from llama_gguf.telemetry.gauges import ReplicaGauges
from llama_gguf.wall_clock import iso

if TYPE_CHECKING:
    from llama_gguf.gateway.replica import Replica
    from llama_gguf.gateway.services import Services


def facts(services: Services) -> list[dict[str, object]]:
    """Of each replica, for /health and the dashboard; contains nothing secret."""
    return [_facts_of(replica, services) for replica in services.fleet.replicas.values()]


def _facts_of(replica: Replica, services: Services) -> dict[str, object]:
    status = replica.tracker.status
    tokens = services.replica_sink.tokens_of(replica.label)
    ratio = tokens.cached_ratio
    return {
        "replica": replica.label,
        "state": state(replica),
        "since": iso(status.since),
        "detail": replica.mismatch or status.detail,
        "model": status.model,
        "context": status.request_tokens,
        "slots": replica.slots.total,
        "running": replica.slots.in_use,
        "tokens_per_second": round(tokens.per_second(services.clock.now()), 1),
        "cached_ratio": None if ratio is None else round(ratio, 3),
    }


def state(replica: Replica) -> str:
    """In one word: why it gets no requests, or ``ready``."""
    engine = replica.tracker.status.state
    if replica.is_leaving:
        return str(ChildState.DRAINING)
    if replica.mismatch:
        return "mismatch"
    if replica.tracker.is_ready and replica.standing.state is not State.SERVING:
        return str(replica.standing.state.value)
    return str(engine)


def gauges(services: Services) -> tuple[ReplicaGauges, ...]:
    """Of each replica, for metrics."""
    return tuple(
        [
            ReplicaGauges(
                label=replica.label,
                state=state(replica),
                is_up=replica.is_usable,
                slots=replica.slots.total,
                running=replica.slots.in_use,
                responses=replica.responses,
                errors=replica.errors,
                refusals=replica.refusals,
                ejections=dict(replica.ejections),
                cached_ratio=services.replica_sink.tokens_of(replica.label).cached_ratio,
            )
            for replica in services.fleet.replicas.values()
        ]
    )
