"""Faults of the real engine: what is lost, what is reported, and that it restarts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.conftest import DEADLINE_SECONDS, MODEL, Served, stop
from tests.support import clients
from tests.support.processes import is_running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Mapping[str, str]:
    chosen: Mapping[str, str] = getattr(request, "param", {"WATCHDOG_HEALTH": "2"})
    return chosen


def send_request(
    served: Served, prompt: str = "Once upon a", tokens: int = 4, *, stream: bool = False
) -> int:
    """The status of a completion; 0 if it was cut."""
    question = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    question["stream"] = stream
    body = json.dumps(question).encode()
    try:
        response = clients.send_request(
            served.port, "/v1/completions", body, key=served.key, seconds=DEADLINE_SECONDS
        )
    except ConnectionError:
        return 0
    return response.status if response.is_whole else 0


def state_of(served: Served) -> str:
    health = served.get("/health")[1]
    return str(health["engine"]["state"]) if health else ""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "signal SIGKILL"),
        (signal.SIGSEGV, "It crashed"),
        (signal.SIGHUP, "signal SIGHUP"),  # which ends it, even if it is idle
        (signal.SIGSTOP, "It did not respond for 2 s."),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_death_loses_no_request_that_had_not_begun_and_the_next_one_waits(
    own_server: Served, number: signal.Signals, said: str
) -> None:
    engine = own_server.child("llama-server")
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(send_request, own_server, tokens=100)
        own_server.until(
            lambda: own_server.get("/health")[1]["slots"]["used"] == 1, "a request at the engine"
        )

        os.kill(engine, number)

        assert long.result(DEADLINE_SECONDS) == 200
    assert send_request(own_server) == 200
    assert own_server.child("llama-server") not in (0, engine)
    assert said in own_server.output
    assert stop(own_server) == 0
    assert not is_running(engine)


@pytest.mark.parametrize("settings", [{"PARALLEL": "8", "CTX": "4096"}], indirect=True)
def test_eight_of_eight_requests_survive_that_wait_for_their_first_token(
    own_server: Served,
) -> None:
    with ThreadPoolExecutor(8) as pool:
        prompts = [f"{n} " + "once upon a time " * 60 for n in range(8)]
        waiting = [
            pool.submit(send_request, own_server, prompt, 8, stream=n % 2 == 0)
            for n, prompt in enumerate(prompts)
        ]
        own_server.until(
            lambda: own_server.get("/health")[1]["slots"]["used"] == 8, "eight at the engine"
        )

        os.kill(own_server.child("llama-server"), signal.SIGKILL)

        assert [request.result(DEADLINE_SECONDS) for request in waiting] == [200] * 8
    metrics = own_server.get("/metrics")[1]
    assert sum(row["value"] for row in metrics["llama_gguf_replays"]) == 8


def test_sigterm_ends_in_time_although_the_engine_ignores_it_during_a_request(
    model_file: Path, own_server: Served
) -> None:
    # llama-server itself ignores SIGTERM while it computes a response that is not streamed.
    children = own_server.children()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(send_request, own_server, tokens=2000)
        own_server.until(
            lambda: own_server.get("/health")[1]["slots"]["used"] == 1, "a request at the engine"
        )
        own_server.process.send_signal(signal.SIGTERM)
        own_server.until(lambda: "Draining:" in own_server.output, "the drain")

        assert stop(own_server) == 0

        assert long.result(DEADLINE_SECONDS) in (0, 200)
    assert not any(is_running(pid) for pid in children)


@pytest.mark.parametrize("settings", [{"IDLE_STOP": "1"}], indirect=True)
def test_it_is_stopped_when_idle_and_started_by_the_next_request(own_server: Served) -> None:
    own_server.until(lambda: state_of(own_server) == "asleep", "sleep")
    own_server.until(lambda: not own_server.child("llama-server"), "its end")
    assert own_server.get("/health")[0] == 200
    assert health_port(own_server) == 200

    assert send_request(own_server) == 200

    assert "died" not in own_server.output


@pytest.mark.parametrize(
    "settings", [{"EXTRA_ARGS": "--sleep-idle-seconds 2"}], indirect=True, ids=["2 s"]
)
def test_the_engines_own_sleep_is_shown_and_only_a_request_ends_it(
    own_server: Served,
) -> None:
    def woken() -> int:
        return own_server.engine_log.count("exiting sleeping state")

    engine = own_server.child("llama-server")
    own_server.until(lambda: state_of(own_server) == "asleep", "sleep")
    for _ in range(20):
        assert own_server.get("/health")[0] == 200
        assert own_server.get("/metrics")[0] == 200
    own_server.until(lambda: seconds_asleep(own_server) > 3, "looks at the sleeping engine")
    assert (state_of(own_server), woken()) == ("asleep", 0)

    assert send_request(own_server) == 200

    own_server.until(lambda: woken() > 0, "its own word of it")
    assert own_server.child("llama-server") == engine


def health_port(served: Served) -> int:
    return clients.send_request(served.port_health, "/", key="").status


def seconds_asleep(served: Served) -> float:
    """The engine is probed in each of them."""
    since = datetime.fromisoformat(served.get("/health")[1]["engine"]["since"])
    return (datetime.now(UTC) - since).total_seconds()
