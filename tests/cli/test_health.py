from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.cli.main import main
from llama_gguf.net.binding import listen
from llama_gguf.supervisor.health_server import HealthServer
from tests.support.blocked import BlockedPipe
from tests.support.clients import status_or_none
from tests.support.engines import FAKE_LLAMA
from tests.support.processes import DEADLINE_SECONDS, free_ports, tethered, until


class Health:
    """`llama-gguf health`, and the engine that it polls."""

    def __init__(self) -> None:
        self.port, self.port_backend = free_ports(2)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.output = subprocess.DEVNULL

    def start(self, **environ: str) -> subprocess.Popen[bytes]:
        ours = {
            "HOST": "127.0.0.1",
            "PORT_HEALTH": str(self.port),
            "PORT_BACKEND": str(self.port_backend),
        }
        health = self._run("-m", "llama_gguf", "health", environ=ours | environ)
        until(self.status)
        return health

    def start_engine(self, *flags: str) -> subprocess.Popen[bytes]:
        return self._run(str(FAKE_LLAMA), "--port", str(self.port_backend), *flags, environ={})

    def _run(self, *argv: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            tethered(sys.executable, *argv),
            env=environ,
            stdout=self.output,
            stderr=self.output,
        )
        self._processes.append(process)
        return process

    def status(self) -> int | None:
        return status_or_none(self.port)

    def response(self, method: str, path: str = "/") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)
        with closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def health() -> Iterator[Health]:
    health = Health()
    yield health
    health.end()


@pytest.mark.processes
def test_in_live_mode_every_path_is_200_without_an_engine(health: Health) -> None:
    process = health.start()

    assert health.response("GET", "/ping") == (200, b"ok\n")
    assert health.response("GET", "/any/path?x=1") == (200, b"ok\n")
    assert health.response("HEAD") == (200, b"")
    assert health.response("POST")[0] == 405

    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.processes
def test_in_ready_mode_it_follows_the_engine(health: Health, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    health.start(HEALTH_MODE="ready")
    until(lambda: health.status() == 503)

    engine = health.start_engine("--load-until", str(loaded))
    until(lambda: health.status() == 204)
    loaded.touch()
    until(lambda: health.status() == 200)
    assert health.response("GET") == (200, b"ok\n")

    engine.kill()
    until(lambda: health.status() == 503)


@pytest.mark.processes
def test_a_silent_peer_does_not_block_others(health: Health) -> None:
    health.start()

    with (
        socket.create_connection(("127.0.0.1", health.port), DEADLINE_SECONDS) as silent,
        socket.create_connection(("127.0.0.1", health.port), DEADLINE_SECONDS) as slow,
    ):
        slow.sendall(b"GET / HT")
        assert health.response("GET") == (200, b"ok\n")
        slow.sendall(b"TP/1.0\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        del silent


@pytest.mark.processes
def test_a_blocked_terminal_does_not_block_the_server(health: Health) -> None:
    with BlockedPipe() as blocked:
        health.output = blocked.fd

        process = health.start(MAX_QUEU_SIZE="5")  # causes a warning

        assert health.response("GET") == (200, b"ok\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert main(["health"], {"HOST": "127.0.0.1", "PORT_HEALTH": str(port)}) == 1

    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_it_can_be_stopped_immediately_after_its_start() -> None:
    # As `serve` does if the model is missing.
    for _ in range(50):
        server = HealthServer(listen("127.0.0.1", 0), lambda: 200)
        server.start()
        server.stop()
