from __future__ import annotations

import pytest

from llama_gguf.engines.status import ChildState
from llama_gguf.telemetry.gauges import Gauges, ReplicaGauges, SharedLimitGauges
from llama_gguf.telemetry.metrics import Metrics


@pytest.fixture
def gauges() -> Gauges:
    return Gauges(
        in_flight=2,
        queue_depth=7,
        body_memory=4096,
        slots=4,
        connections=9,
        state=ChildState.LOADING,
        states=tuple(ChildState),
        is_ready=False,
        restarts={"crash": 2},
        is_degraded=False,
        load_seconds=3.5,
        keys_loaded=3,
        next_expiry=3600.5,
        version="1.2.3",
        python="3.11.2",
        uptime=12.5,
        token_budgets={("alice", "day"): (100, 30, 70)},
        engine_budgets={("alice", "day"): (9, 2.5, 6.5)},
        replicas=(
            ReplicaGauges(
                *("10.0.0.1:8080", "ready"),
                is_up=True,
                slots=4,
                running=1,
                responses=9,
                errors=2,
                refusals=3,
                ejections={"errors": 1},
                cached_ratio=0.75,
            ),
        ),
        session_moves={"busy": 2},
        prompt_cache={
            "bytes": 4096,
            "files": 1,
            "saves": 2,
            "save_failures": 0,
            "restores": 1,
            "restore_failures": 0,
            "spared_tokens": 118,
            "spared_seconds": 1.5,
        },
        shared_limits=SharedLimitGauges(is_up=True, gateways=2, outages=1, local_decisions=5),
    )


@pytest.fixture
def metrics() -> Metrics:
    found = Metrics()
    found.requests["/v1/models", "GET", 200] += 5
    found.rejections["queue_full"] += 1
    found.client_disconnects["queued"] += 2
    found.rate_limited["alice", "requests"] += 3
    found.backend_failures["connect"] += 4
    found.count_reload(True)
    found.received_bytes = 10
    found.sent_bytes = 20
    found.tokens["alice", "prompt"] += 6
    found.usage_unknown["/v1/rerank"] += 1
    found.first_tokens["chat"].observe([0.3])
    found.output_tokens["chat"].observe([0.02])
    found.durations["chat"].observe([0.5])
    return found
