from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_gguf.cli.operate import age, duration, facts_rows, key_rows, state_text

COUNTS = {"requests": 2, "errors": 1, "prompt_tokens": 30, "completion_tokens": 12}
GATEWAY: dict[str, Any] = {
    "slots": {"used": 1, "total": 4},
    "queue": {"length": 3, "size": 256},
    "recent": {
        "seconds": 60.0,
        "requests": 30,
        "requests_per_second": 0.5,
        "prompt_tokens_per_second": 10.0,
        "completion_tokens_per_second": 55.55,
        "first_token_p50": 0.25,
    },
    "errors": {"queue_full": 2},
    "keys_loaded": 2,
    "connections": 5,
    "keys": [{"key_id": "alice", "total": COUNTS, "last_minute": COUNTS}],
}
NOW = "2999-01-01T00:00:00+00:00"
"""In the future: no time has passed since then, however long a test takes."""


def facts(**changes: Any) -> dict[str, Any]:
    """A status, as the control socket sends it."""
    return {
        "ok": True,
        "server": "serve",
        "version": "1.0",
        "pid": 7,
        "state": "ready",
        "since": NOW,
        "detail": "",
        "progress": None,
        "url": "http://127.0.0.1:8000",
        "port": 8000,
        "data_dir": "/data",
        "uptime_seconds": 61.0,
        "model": {"name": "tiny", "quantization": "Q4_1", "context": 4096},
        "replicas": [replica()],
        "gateway": GATEWAY,
        "log": [],
        **changes,
    }


def replica(**changes: Any) -> dict[str, Any]:
    return {
        "name": "0",
        "state": "ready",
        "since": NOW,
        "detail": "",
        "progress": None,
        "slots": 4,
        "load_seconds": 1.5,
        "last_exit": "",
        "restarts": 0,
        "missing_devices": [],
        "pid": 8,
        "log_file": "/data/logs/x.log",
        **changes,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 s"),
        (59.9, "59 s"),
        (60.0, "1 min 0 s"),
        (3725.0, "1 h 2 min"),
        (90_000.0, "1 d 1 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_age_is_the_time_since_a_moment() -> None:
    then = datetime.now(UTC) - timedelta(hours=2, minutes=5, seconds=30)

    assert age(then.isoformat(timespec="seconds")) == "2 h 5 min"


def test_a_state_has_its_progress_and_its_reason() -> None:
    part = {"state": "loading", "since": NOW, "progress": 0.42, "detail": "A reason."}

    assert state_text(part) == "loading 42% for 0 s: A reason."


def test_a_status_names_server_model_replicas_and_gateway() -> None:
    rows = dict(facts_rows(facts()))

    assert rows["model"] == "tiny (Q4_1, 4096 tokens per request)"
    assert rows["url"] == "http://127.0.0.1:8000/v1"
    assert rows["replica 0"] == "ready for 0 s, process 8, loaded in 1.5 s"
    assert rows["slots"] == "1 of 4 in use"
    assert rows["queue"] == "3 of 256"
    assert rows["errors"] == "2 queue_full in 15 min"
    assert rows["last minute"].startswith("30 requests, 10.0 prompt and 55.5 output tokens/s")
    assert rows["last minute"].endswith(", first token 0.25 s")


def test_a_server_that_has_just_started_has_no_last_minute() -> None:
    recent = {**GATEWAY["recent"], "seconds": 10.02, "requests": 1}

    rows = dict(facts_rows(facts(gateway={**GATEWAY, "recent": recent, "errors": {}})))

    assert "last minute" not in rows
    assert rows["last 10 s"].startswith("1 request, 10.0 prompt")
    assert rows["errors"] == "none in 15 min"


def test_a_server_that_has_measured_nothing_yet_shows_no_rates() -> None:
    recent = {**GATEWAY["recent"], "seconds": 0.0, "requests": 0}

    rows = dict(facts_rows(facts(gateway={**GATEWAY, "recent": recent})))

    assert rows["last minute"] == "not measured yet"


PEER = {
    "replica": "gpu-2:8000",
    "state": "ready",
    "since": NOW,
    "detail": "",
    "slots": 4,
    "running": 3,
}


def test_a_status_lists_the_peers_that_only_the_gateway_knows() -> None:
    lost = {**PEER, "replica": "c:1", "state": "unreachable", "slots": 0, "running": 0}
    of_gateway = [{**PEER, "replica": "0"}, PEER, lost]

    rows = dict(facts_rows(facts(gateway={**GATEWAY, "replicas": of_gateway})))

    assert rows["replica 0"] == "ready for 0 s, process 8, loaded in 1.5 s"
    assert rows["peer gpu-2:8000"] == "ready for 0 s, 3 of 4 slots in use"
    assert rows["peer c:1"] == "unreachable for 0 s"
    assert "peer 0" not in rows


def test_a_status_shows_deaths_and_a_gateway_that_does_not_respond() -> None:
    died = replica(last_exit="signal SIGKILL: memory ran out", restarts=2, pid=None)

    rows = dict(facts_rows(facts(replicas=[died], gateway=None, model={"name": ""})))

    assert rows["replica 0"].endswith("2 restarts")
    assert rows["  last exit"] == "signal SIGKILL: memory ran out"
    assert rows["gateway"] == "does not respond"
    assert rows["model"] == "-"


def test_a_key_has_its_requests_tokens_and_errors() -> None:
    assert key_rows(GATEWAY) == [("alice", "2", "42", "2", "42", "1")]
