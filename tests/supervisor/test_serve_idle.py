"""An engine without requests, and log files that are moved away."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.processes import until_gone
from tests.support.serve import CHAT, Serve

pytestmark = pytest.mark.processes


def test_an_idle_engine_is_stopped_and_restarted_by_the_next_request(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    serve.start_ready(IDLE_STOP="1")
    gateway = serve.gateway_pid
    for _ in range(2):
        engine = serve.engine_pid
        serve.until(lambda: serve.engine_state() == "asleep")

        # At once: usually before the process has ended.
        responses = list(pool.map(lambda n: serve.send_request(CHAT, b'{"n": %d}' % n), range(4)))

        assert [a.status for a in responses] == [200] * 4
        until_gone(engine)
    serve.until(lambda: serve.engine_state() == "asleep" and not serve.engine_pid)
    assert serve.health() == 200
    health = serve.send_request("/health", key="")
    assert (health.status, health.json["status"]) == (200, "asleep")
    assert serve.stop() == 0
    until_gone(gateway)
    assert "died" not in serve.err
    assert "Traceback" not in serve.err
    assert serve.out.count("Ready:") == 1


def test_a_request_for_the_models_wakes_it_and_gets_503_meanwhile(serve: Serve) -> None:
    serve.start_ready(IDLE_STOP="1")
    serve.until(lambda: serve.engine_state() == "asleep" and not serve.engine_pid)

    models = serve.send_request("/v1/models")
    assert models.status == 200
    assert len(models.json["data"]) == 1
    assert serve.engine_state() == "asleep"
    response = serve.send_request("/props")

    assert (response.status, response.json["error"]["code"]) == (503, "model_loading")
    serve.until(lambda: serve.send_request("/props").status == 200)


def test_its_own_sleep_is_shown_and_ends_with_the_next_request(serve: Serve) -> None:
    serve.start_ready(engine="--sleep-idle-seconds 3")
    engine = serve.engine_pid
    serve.until(lambda: serve.engine_state() == "asleep")
    assert serve.health() == 200
    assert serve.send_request("/props").status == 200
    assert serve.engine_state() == "asleep"

    assert serve.send_request(CHAT, b"{}").status == 200

    serve.until(lambda: serve.engine_state() == "ready")
    assert serve.engine_pid == engine


def test_sigusr1_opens_the_log_files_again_and_reads_nothing(serve: Serve) -> None:
    serve.start_ready()
    gateway, engine = serve.gateway_pid, serve.engine_pid
    logs = serve.data / "logs"
    serve.send_request("/ping", key="")
    serve.until((logs / "api_access.log").exists)
    for path in logs.rglob("*.log"):
        path.rename(path.with_suffix(".moved"))

    serve.signal(signal.SIGUSR1)
    serve.send_request(CHAT, b"{}")

    serve.until((logs / "api_access.log").exists)
    serve.signal(signal.SIGHUP)
    serve.until(lambda: serve.err.count("API keys loaded") == 2)
    assert (serve.gateway_pid, serve.engine_pid) == (gateway, engine)
    assert serve.stop() == 0
    assert [p.name.split("_")[1] for p in Path(logs / "_boot").glob("*.log")] == ["boot"]
