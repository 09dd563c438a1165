"""The real llama-server and the real demo model, through the whole of ``serve``.

The model is fetched once, by ``llama-gguf pull``, into .cache/models.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import Address, Wire, connected

ROOT = Path(__file__).parents[2]
MODELS_DIR = ROOT / ".cache" / "models"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
COMMAND = [sys.executable, "-m", "llama_gguf"]
# On a machine that builds something else at the same time, loading may take its time.
DEADLINE_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Served:
    """A running ``llama-gguf serve``."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    port: int
    port_health: int
    port_backend: int
    backend_key: str
    backend_socket: str = ""

    @property
    def address(self) -> Address:
        return ("127.0.0.1", self.port)

    @property
    def backend_address(self) -> Address:
        return self.backend_socket or ("127.0.0.1", self.port_backend)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def key(self) -> str:
        """The key that --create-key made; empty until it has."""
        path = self.data_dir / "api_keys.txt"
        return path.read_text().splitlines()[-1].split(":")[1] if path.exists() else ""

    @property
    def output(self) -> str:
        return (self.data_dir / "output.txt").read_text()

    @property
    def engine_log(self) -> str:
        logs = sorted((self.data_dir / "logs" / "llama").iterdir())
        return "".join(log.read_text(errors="replace") for log in logs)

    def wire(self, *, backend: bool = False) -> Wire:
        """A connection for raw bytes, patient enough for a model on a busy machine."""
        wire = Wire(self.backend_address if backend else self.address)
        wire.sock.settimeout(DEADLINE_SECONDS)
        return wire

    def chat(self) -> None:
        """A short chat, streamed."""
        body = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":8,"stream":true}'
        with self.wire() as wire:
            wire.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (self.key.encode(), len(body), body)
            )
            assert wire.response().status == 200

    def get(self, path: str, *, backend: bool = False) -> tuple[int, Any]:
        """Status and JSON of a GET, with the key that belongs there; (0, None) when refused."""
        key = self.backend_key if backend else self.key
        connection = _Connection(self.backend_address if backend else self.address)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        except OSError:
            return 0, None
        finally:
            connection.close()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Look every 50 ms whether *condition* holds; fail after a long time."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"serve left while waiting for {what}:\n{self.output}")
            if time.monotonic() > deadline:
                pytest.fail(f"no sign of {what}:\n{self.output}")
            time.sleep(0.05)

    def until_ready(self) -> None:
        self.until(lambda: self.get("/health")[0] == 200, "a ready model")

    def child(self, word: str) -> int:
        """The pid of the child whose command line has *word* in it; 0 when there is none."""
        return next((pid for pid in self.children() if word in command_line(pid)), 0)

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


class _Connection(http.client.HTTPConnection):
    """To a port or a unix socket."""

    def __init__(self, address: Address) -> None:
        super().__init__("localhost", timeout=30)
        self._address = address

    def connect(self) -> None:
        self.sock = connected(self._address)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The demo model; fetched by the command that users fetch it with."""
    subprocess.run(
        [*COMMAND, "pull", "smollm2", "--models-dir", str(MODELS_DIR)], check=True, timeout=600
    )
    return MODELS_DIR / f"{MODEL}.gguf"


def start(data_dir: Path, settings: Mapping[str, str]) -> Served:
    served = Served(
        process=None,  # type: ignore[arg-type]  # started below, with these ports
        data_dir=data_dir,
        port=free_port(),
        port_health=free_port(),
        port_backend=free_port(),
        backend_key="gateway-" + "e" * 43,
        backend_socket=settings.get("BACKEND_SOCKET", ""),
    )
    environ = {
        **os.environ,
        "DATA_DIR": str(data_dir),
        "MODELS_DIR": str(MODELS_DIR),
        "HOST": "127.0.0.1",
        "PORT": str(served.port),
        "PORT_HEALTH": str(served.port_health),
        "PORT_BACKEND": str(served.port_backend),
        "BACKEND_API_KEY": served.backend_key,
        "HEALTH_MODE": "ready",
        "CTX": "2048",
        "THREADS": "1",  # threads that spin on busy cores make it slower, not faster
        "MAX_REQUESTS_PER_MINUTE": "10000",
        **settings,
        # Chance may begin an answer with half an emoji, where llama-server's streams are odd.
        "EXTRA_ARGS": f"--temp 0 {settings.get('EXTRA_ARGS', '')}",
    }
    with (data_dir / "output.txt").open("wb") as output:
        served.process = subprocess.Popen(
            [*COMMAND, "serve", "smollm2", "--create-key"],
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return served


def stop(served: Served) -> int:
    if served.process.poll() is None:
        served.process.send_signal(signal.SIGTERM)
    try:
        return served.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        served.process.kill()
        served.process.wait()
        raise


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    """What the servers of a module have beside the usual; a module says it with its own."""
    return {}


@pytest.fixture(scope="module")
def served(
    model_file: Path, tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]
) -> Iterator[Served]:
    """One server for the tests of a module that leave it as it was."""
    assert model_file.is_file()
    served = start(tmp_path_factory.mktemp("data"), settings)
    try:
        served.until_ready()
        yield served
    finally:
        stop(served)


@pytest.fixture
def own_server(model_file: Path, tmp_path: Path, settings: Mapping[str, str]) -> Iterator[Served]:
    """A server for a test that treats it badly."""
    assert model_file.is_file()
    served = start(tmp_path, settings)
    try:
        served.until_ready()
        yield served
    finally:
        stop(served)
