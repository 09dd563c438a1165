from __future__ import annotations

import json

from llama_gguf.telemetry.gauges import EngineMetric, Gauges
from llama_gguf.telemetry.metrics import Metrics
from tests.support.metrics_text import as_json


def test_json_has_plain_numbers_by_name_and_labelled_ones_as_rows(
    metrics: Metrics, gauges: Gauges
) -> None:
    found = json.loads(json.dumps(as_json(metrics, gauges)))

    assert found["llama_gguf_sent_bytes"] == 20
    assert found["llama_gguf_requests"] == [
        {"route": "/v1/models", "method": "GET", "status": "200", "value": 5}
    ]
    assert found["llama_gguf_rate_limited"] == [
        {"key_id": "alice", "limit": "requests", "value": 3}
    ]
    (row,) = found["gen_ai_server_time_to_first_token_seconds"]
    assert row["gen_ai_operation_name"] == "chat"
    assert (row["value"]["count"], row["value"]["sum"]) == (1, 0.3)
    assert row["value"]["buckets"]["0.5"] == 1
    assert sum(row["value"]["buckets"].values()) == 1


def test_values_above_all_bounds_count_in_json(metrics: Metrics, gauges: Gauges) -> None:
    metrics.queue_waits.observe([1e6])

    found = as_json(metrics, gauges)["llama_gguf_queue_wait_seconds"]

    assert isinstance(found, dict)
    assert found["count"] == 1


def test_an_unused_gateway_has_metrics(gauges: Gauges) -> None:
    found = as_json(Metrics(), gauges)

    assert found["llama_gguf_requests"] == []
    assert found["llama_gguf_sent_bytes"] == 0


def test_values_that_are_not_known_yet_are_null(gauges: Gauges) -> None:
    found = as_json(Metrics(), gauges._replace(next_expiry=None, load_seconds=None))

    assert found["llama_gguf_keys_next_expiry_seconds"] is None
    assert found["llama_gguf_backend_load_seconds"] is None


def test_the_engine_s_own_metrics_are_included(gauges: Gauges) -> None:
    metric = EngineMetric("llama_gguf_engine_n_decode", "counter", "Calls.", 7.0)

    assert as_json(Metrics(), gauges, [metric])[metric.name] == 7.0
