"""Deaths of the gateway and of the engine, at the first load and later, and their reports.

Their cost, and what remains, is in test_faults.py.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.support.keys import BACKEND_KEY, KEY
from tests.support.processes import DEADLINE_SECONDS, until_gone
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes

DONE = b"data: [DONE]"


# The gateway --------------------------------------------------------------------------------------


def test_a_killed_gateway_is_restarted_without_a_refused_connection_or_a_reload(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    serve.start_ready(MAX_REQUESTS_PER_MINUTE="1000000")
    gateway, engine = serve.gateway_pid, serve.engine_pid
    stop = threading.Event()
    clients = [pool.submit(answers_until, serve, stop) for _ in range(4)]
    stream = serve.stream()

    os.kill(gateway, signal.SIGKILL)

    until_gone(gateway)
    waiting = pool.submit(serve.send_request, CHAT, b"{}")  # connects while there is no gateway
    serve.until(lambda: serve.gateway_pid not in (0, gateway))
    assert waiting.result().status == 200
    stop.set()
    for client in clients:
        statuses = client.result()  # raises if a connection was refused
        assert set(statuses) <= {200, 503}
        assert 200 in statuses
    assert DONE not in stream.rest()
    assert serve.engine_pid == engine
    assert "The gateway died (signal SIGKILL)" in serve.err


def answers_until(serve: Serve, stop: threading.Event) -> list[int]:
    """The statuses of successive requests, without those that the death cut."""
    statuses = []
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=DEADLINE_SECONDS)
        connection.connect()
        try:
            connection.request("POST", CHAT, b"{}", {"authorization": f"Bearer {KEY}"})
            statuses.append(connection.getresponse().status)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            pass
        finally:
            connection.close()
    return statuses


def test_a_gateway_that_is_killed_before_it_listens_is_restarted(serve: Serve) -> None:
    serve.start_ready()
    engine = serve.engine_pid
    killed = [serve.gateway_pid]
    os.kill(killed[0], signal.SIGKILL)
    for _ in range(2):
        pid = serve.until(lambda: serve.gateway_pid if serve.gateway_pid not in killed else 0)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    # Unread data in the channel makes its end a ConnectionResetError.
    serve.until(lambda: serve.engine_state() == "ready")

    assert serve.engine_pid == engine
    assert serve.send_request(CHAT, b"{}").status == 200


# The engine, after it has served ------------------------------------------------------------------


def test_a_killed_engine_is_restarted_and_requests_in_between_wait_for_it(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    serve.start_ready()
    gateway, engine = serve.gateway_pid, serve.engine_pid
    stream = serve.stream()

    os.kill(engine, signal.SIGKILL)

    received = stream.rest()
    assert DONE not in received
    serve.until(lambda: serve.engine_state() in ("backoff", "loading"))
    assert serve.health() in (503, 204)
    waiting = [pool.submit(serve.send_request, CHAT, b'{"n": %d}' % n) for n in range(4)]
    assert [w.result().json for w in waiting] == [{"echo": f'{{"n": {n}}}'} for n in range(4)]
    assert serve.engine_pid not in (0, engine)
    assert serve.gateway_pid == gateway
    assert "llama-server died (signal SIGKILL). It was killed from outside" in serve.err
    assert serve.health() == 200
    assert serve.out.count("Ready:") == 1


def test_an_engine_that_comes_back_without_a_device_is_reported_everywhere(serve: Serve) -> None:
    listed = serve.folder / "devices"
    both = "  CUDA0: NVIDIA L4 (2 MiB, 1 MiB free)\n  RPC0: 10.0.0.2:50052 (2 MiB, 2 MiB free)\n"
    listed.write_text(both)
    serve.start_ready(FAKE_DEVICES=str(listed))

    def restarted_with(devices: str) -> tuple[dict[str, Any], float]:
        """The engine in /health, and the metric."""
        engine = serve.engine_pid
        listed.write_text(devices)
        os.kill(engine, signal.SIGKILL)
        serve.until(lambda: serve.engine_state() != "ready")
        serve.until(lambda: serve.engine_state() == "ready")
        metrics = serve.send_request("/metrics").json
        response = serve.send_request("/health")
        assert (response.status, response.json["status"]) == (200, "ok")
        return response.json["engine"], metrics["llama_gguf_backend_degraded"]

    gone, degraded = restarted_with("  CUDA0: NVIDIA L4 (2 MiB, 1 MiB free)\n")
    assert gone["missing_devices"] == ["RPC (10.0.0.2:50052)"]
    assert gone["detail"] == "It runs without devices that it had before: RPC (10.0.0.2:50052)"
    assert degraded == 1
    lost = "llama-server runs without devices that it had before: RPC (10"
    serve.until(lambda: lost in serve.err)
    assert serve.err.count(lost) == 1

    back, degraded = restarted_with(both)
    assert (back["missing_devices"], back["detail"], degraded) == ([], "", 0)
    serve.until(lambda: "llama-server has all of its devices again" in serve.err)


def test_a_crash_loop_ends_after_max_restarts_with_the_engines_status(serve: Serve) -> None:
    broken = serve.folder / "broken"
    script = serve.engine.read_text().removeprefix("#!/bin/sh\n")
    serve.write_engine(f"test -e {broken} && exit 9\n{script}")
    serve.start_ready(MAX_RESTARTS="1")
    gateway = serve.gateway_pid

    broken.touch()
    os.kill(serve.engine_pid, signal.SIGKILL)

    assert serve.wait() == 9
    until_gone(gateway)
    assert serve.err.count("llama-server died") == 2
    assert "Giving up on llama-server; serve exits with status" in serve.err


def test_a_helper_that_outlives_the_engine_does_not_hide_its_death(serve: Serve) -> None:
    # It keeps the engine's output open and, in a separate session, is not in its group.
    pid_file = serve.folder / "helper"
    script = serve.engine.read_text().removeprefix("#!/bin/sh\n")
    helper = f"setsid sleep 60 & echo $! > {pid_file}"
    serve.write_engine(
        f'case "$*" in --version | *--list-devices) ;; *) {helper} ;; esac\n{script}'
    )
    serve.start_ready(MAX_RESTARTS="0")
    try:
        os.kill(serve.engine_pid, signal.SIGKILL)

        assert serve.process.wait(5) == 128 + signal.SIGKILL
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_an_engine_that_a_script_starts_without_exec_is_not_left_behind(serve: Serve) -> None:
    pid_file = serve.folder / "pid"
    serve.write_engine(serve.engine.read_text().partition("exec ")[2])
    serve.start_ready(engine=quoted("--pid-file", str(pid_file)))
    engine = int(pid_file.read_text())
    assert serve.send_request(CHAT, b"{}").status == 200

    assert serve.stop() == 0

    until_gone(engine)


# The engine, at its first load --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "status", "reasons"),
    [
        (
            "--print 'the tokenizer is broken' --exit-at-load 7",
            7,
            ["exit status 7", "It exited with an error.", "    the tokenizer is broken\n"],
        ),
        ("--die-at-load SIGILL", 132, ["signal SIGILL", "instructions that this CPU does not"]),
        (
            "--print 'error: invalid argument: --nope' --exit-at-load 1",
            1,
            ["rejected one of its flags", "Check EXTRA_ARGS", "invalid argument: --nope"],
        ),
    ],
    ids=["status", "SIGILL", "flag"],
)
def test_an_engine_that_dies_at_its_first_load_is_explained_and_its_status_is_ours(
    serve: Serve, engine: str, status: int, reasons: list[str]
) -> None:
    serve.start(engine=engine)

    assert serve.wait() == status
    for reason in reasons:
        assert reason in serve.err
    assert serve.err.count("llama-server died") == 1
    assert serve.out == ""
    assert "Traceback" not in serve.err


def test_a_death_during_the_load_is_reported_to_a_waiting_client(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    switch = serve.folder / "switch"
    os.mkfifo(switch)
    serve.write_engine(
        f'case "$*" in --version | *--list-devices) exit;; esac; cat {switch}; exit 7'
    )
    serve.start()
    serve.until(lambda: serve.engine_state() == "loading")
    waiting = pool.submit(serve.send_request, CHAT, b"{}")
    serve.until(lambda: serve.send_request("/health", key="").json["queue"]["length"] == 1)

    switch.write_text("the end\n")

    response = waiting.result()
    assert response.status == 503
    assert response.json["error"]["code"] == "backend_unavailable"
    assert serve.wait() == 7
    assert "    the end\n" in serve.err


# The engine's port --------------------------------------------------------------------------------


@dataclass
class Stranger:
    port: int
    heads: list[str]


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Another server, which responds 200 to every request."""
    heads = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heads.append(str(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Stranger(server.server_port, heads)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_another_server_at_the_engines_port_is_not_mistaken_for_the_engine(
    serve: Serve, stranger: Stranger
) -> None:
    serve.start(PORT_BACKEND=str(stranger.port), MAX_RESTARTS="1", BACKEND_API_KEY=BACKEND_KEY)

    assert serve.wait() == 1
    assert BACKEND_KEY not in "".join(stranger.heads)
    assert "Ready:" not in serve.out
    assert "To use another port, set PORT_BACKEND" in serve.err
