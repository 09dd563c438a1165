"""`serve` with several replicas: deaths, idle replicas, rolling restarts under load."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.processes import children, row_of_ports, until_gone
from tests.support.serve import CHAT, Serve

pytestmark = pytest.mark.processes


@pytest.fixture
def serve(serve: Serve) -> Serve:
    serve.environ["PORT_BACKEND"] = str(row_of_ports(5))
    serve.environ |= {"REPLICAS": "3", "MAX_REQUESTS_PER_MINUTE": "1000000"}
    return serve


def engines(serve: Serve) -> dict[int, str]:
    """The command lines of the engines, by pid."""
    return {
        pid: command
        for pid, command in children(serve.pid).items()
        if "support/fake_llama.py" in command
        and not any(word in command for word in ("pdeathsig.py", "--list-devices", "--version"))
    }


def ready(serve: Serve) -> int:
    """How many replicas the gateway uses in full: the fake engine has four slots.

    One that becomes ready under load gets one request at first, and one more with each response.
    """
    return int(serve.send_request("/health", key="").json["slots"]["total"]) // 4


def start_all(serve: Serve, engine: str = "", **environ: str) -> None:
    serve.start_ready(engine=engine, **environ)
    serve.until(lambda: ready(serve) == 3)


class Load:
    """Clients that send one request after the other, four of them at least."""

    def __init__(self, serve: Serve, pool: ThreadPoolExecutor) -> None:
        self._serve = serve
        self._stop = threading.Event()
        self._clients: list[Future[list[int]]] = [pool.submit(self._run) for _ in range(6)]

    def _run(self) -> list[int]:
        statuses: list[int] = []
        while not self._stop.is_set() or len(statuses) < 4:
            statuses.append(self._serve.send_request(CHAT, b"{}").status)
        return statuses

    def end(self) -> list[int]:
        self._stop.set()
        return [status for client in self._clients for status in client.result()]


@contextmanager
def under_load(serve: Serve, pool: ThreadPoolExecutor) -> Iterator[None]:
    """No request fails meanwhile."""
    load = Load(serve, pool)
    yield
    assert set(load.end()) == {200}


def test_each_replica_has_its_port_its_threads_and_its_log(serve: Serve) -> None:
    start_all(serve, THREADS="6")
    commands = list(engines(serve).values())
    first = int(serve.environ["PORT_BACKEND"])

    for number in range(3):
        assert sum(f"--port {first + number}" in each for each in commands) == 1
    assert all("--threads 2" in each for each in commands)
    logs = {path.name.split("_")[1] for path in (serve.data / "logs" / "llama").iterdir()}
    assert logs == {"server", "server-1", "server-2"}
    assert "Replica 2: The model is ready" in serve.err
    found = engines(serve)
    assert serve.stop() == 0
    for pid in found:
        until_gone(pid)


def test_a_killed_replica_is_restarted_while_the_others_serve(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    start_all(serve)
    with under_load(serve, pool):
        for victim in list(engines(serve)):
            os.kill(victim, signal.SIGKILL)
            serve.until(lambda: len(engines(serve)) == 3 and ready(serve) == 3)
    assert "Replica 1: llama-server died (signal SIGKILL)" in serve.err
    assert serve.err.count("llama-server died") == 3
    assert serve.stop() == 0


def test_a_replica_that_is_given_up_leaves_the_others_serving(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    start_all(serve, MAX_RESTARTS="0")
    with under_load(serve, pool):
        os.kill(next(iter(engines(serve))), signal.SIGKILL)
        serve.until_printed("Giving up on llama-server; other replicas serve on")
        serve.until(lambda: ready(serve) == 2)
    for pid in engines(serve):
        os.kill(pid, signal.SIGKILL)

    assert serve.wait() == 128 + signal.SIGKILL
    assert serve.err.count("serve exits with status 137") == 1


def test_a_model_that_no_replica_can_load_ends_serve_with_the_engines_status(serve: Serve) -> None:
    serve.start(engine="--exit-at-load 7")

    assert serve.wait() == 7
    assert "Traceback" not in serve.err


def test_a_replica_whose_port_is_taken_is_reported_before_anything_starts(serve: Serve) -> None:
    second = int(serve.environ["PORT_BACKEND"]) + 1
    with socket.create_server(("127.0.0.1", second)):
        serve.start()

        assert serve.wait() == 1
    assert str(second) in serve.err
    assert "Starting llama-server" not in serve.err


def test_idle_replicas_are_stopped_and_the_first_one_wakes_first(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    start_all(serve, IDLE_STOP="1")
    first = f"--port {serve.environ['PORT_BACKEND']}"
    serve.until(lambda: not engines(serve))

    assert serve.send_request(CHAT, b"{}").status == 200

    (command,) = engines(serve).values()
    assert first in command
    assert "died" not in serve.err
    order = [
        line.split("Replica ")[1][0] for line in serve.err.splitlines() if "Stopping ll" in line
    ]
    assert order[:3] == ["2", "1", "0"]
    serve.until(lambda: not engines(serve))
    assert serve.stop() == 0


# Rolling restarts ---------------------------------------------------------------------------------


def restart(serve: Serve) -> None:
    serve.signal(signal.SIGUSR2)


def test_a_rolling_restart_replaces_every_engine_and_no_request_fails(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    start_all(serve)
    before = engines(serve)
    gateway = serve.gateway_pid
    with under_load(serve, pool):
        restart(serve)
        serve.until_printed("Rolling restart complete: 3 replicas")
        serve.until(lambda: ready(serve) == 3)

    assert not before.keys() & engines(serve).keys()
    assert len(engines(serve)) == 3
    assert serve.gateway_pid == gateway
    assert "died" not in serve.err
    with under_load(serve, pool):  # the addresses are used again
        restart(serve)
        serve.until(lambda: serve.err.count("Rolling restart complete") == 2)
    assert serve.stop() == 0
    assert "Traceback" not in serve.err


NO_ROOM = "--lora adapter.gguf"
"""A file whose memory is not known: no second engine is started beside the first."""


@pytest.mark.parametrize("number", ["1", "2"])
def test_without_room_the_queue_holds_while_an_engine_is_replaced(
    serve: Serve, pool: ThreadPoolExecutor, number: str
) -> None:
    serve.start_ready(engine=f"{NO_ROOM} --load-seconds 1", REPLICAS=number)
    serve.until(lambda: ready(serve) == int(number))
    before = engines(serve)
    load = Load(serve, pool)
    streams = [pool.submit(serve.stream) for _ in range(2)]
    for stream in streams:
        stream.result()

    restart(serve)
    serve.until_printed("waiting for the requests of the old engine")
    serve.end_streams()
    serve.until_printed("Rolling restart complete")

    assert all(b"data: [DONE]" in stream.result().rest() for stream in streams)
    assert set(load.end()) == {200}
    assert not before.keys() & engines(serve).keys()
    assert "beside" not in serve.err
    ports = {command.split("--port ")[1] for command in engines(serve).values()}
    assert ports == {command.split("--port ")[1] for command in before.values()}


def test_a_stream_holds_a_restart_up_for_drain_timeout_at_most(serve: Serve) -> None:
    serve.start_ready(REPLICAS="1", DRAIN_TIMEOUT="1")
    before = engines(serve)
    stream = serve.stream()

    restart(serve)

    serve.until_printed("Rolling restart complete")
    assert b"data: [DONE]" not in stream.rest()
    assert "requests after 1 s (DRAIN_TIMEOUT): they are cut" in serve.err
    assert not before.keys() & engines(serve).keys()
    assert serve.send_request(CHAT, b"{}").status == 200


@pytest.mark.parametrize(
    ("engine", "outcome"),
    [("", "so the old one stays"), (NO_ROOM, "and the old one was started again")],
    ids=["with room", "without"],
)
def test_a_new_engine_that_does_not_come_up_leaves_the_old_one_serving(
    serve: Serve, pool: ThreadPoolExecutor, engine: str, outcome: str
) -> None:
    start_all(serve, engine=engine)
    before = engines(serve)
    good = serve.engine.read_text().removeprefix("#!/bin/sh\n")
    broken = serve.folder / "broken"
    passing = 'case "$*" in --version | *--list-devices) ;;'
    with under_load(serve, pool):
        # The old engine's script is the same file: only its new settings are wrong.
        serve.write_engine(
            f"{passing} *) test -e {broken} && rm {broken} && exit 9 ;; esac\n{good}"
        )
        broken.touch()
        restart(serve)
        serve.until_printed("The rolling restart has failed")
        serve.until(lambda: ready(serve) == 3)

    (line,) = [each for each in serve.err.splitlines() if "rolling restart has failed" in each]
    assert outcome in line
    assert "exit status 9" in line
    assert len(before.keys() & engines(serve).keys()) == (2 if engine else 3)
    assert serve.send_request(CHAT, b"{}").status == 200
    assert "serve exits" not in serve.err
    restart(serve)
    serve.until_printed("Rolling restart complete: 3 replicas")
    assert serve.stop() == 0


def test_a_mistake_in_the_new_state_of_things_changes_nothing(serve: Serve) -> None:
    start_all(serve)
    before = engines(serve)
    model = serve.model.read_bytes()
    serve.model.write_bytes(b"no model")

    restart(serve)
    serve.until_printed("The rolling restart has failed")

    assert engines(serve) == before
    serve.model.write_bytes(model)
    restart(serve)
    serve.until_printed("Rolling restart complete: 3 replicas")


def test_a_second_restart_is_refused_while_one_is_running(serve: Serve) -> None:
    start_all(serve)
    stream = serve.stream()
    restart(serve)
    serve.until_printed("Reading the settings again")

    restart(serve)

    serve.until_printed("No rolling restart: a rolling restart is running already")
    serve.end_streams()
    assert b"data: [DONE]" in stream.rest()
    serve.until_printed("Rolling restart complete: 3 replicas")
    assert serve.err.count("Reading the settings again") == 1


@pytest.mark.parametrize("engine", ["", NO_ROOM], ids=["with room", "without"])
def test_a_stop_during_a_restart_ends_every_engine(serve: Serve, engine: str) -> None:
    gate = serve.folder / "gate"
    gate.touch()
    start_all(serve, engine=f"{engine} --load-until {gate}")
    gate.unlink()
    restart(serve)
    serve.until_printed("loading the new engine" if not engine else "starting the new engine")
    serve.until(lambda: len(engines(serve)) == (4 if not engine else 3))
    found = engines(serve)

    assert serve.stop() == 0

    for pid in found:
        until_gone(pid)
    assert "Traceback" not in serve.err
    assert "has failed" not in serve.err


def test_an_engine_that_dies_during_a_restart_is_restarted(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    start_all(serve)
    before = engines(serve)
    port = int(serve.environ["PORT_BACKEND"]) + 2
    (last,) = [pid for pid, command in before.items() if f"--port {port}" in command]
    with under_load(serve, pool):
        restart(serve)
        serve.until_printed("Reading the settings again")
        os.kill(last, signal.SIGKILL)
        serve.until_printed("Rolling restart complete: 3 replicas")
        serve.until(lambda: ready(serve) == 3)
    assert not before.keys() & engines(serve).keys()
    assert serve.stop() == 0
