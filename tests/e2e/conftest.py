"""The real llama-server and the real demo model, run by ``llama-gguf serve``.

The model is downloaded once, by ``llama-gguf pull``, into .cache/models.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import processes
from tests.support.clients import Address, Wire, send_request
from tests.support.processes import free_ports

ROOT = Path(__file__).parents[2]
MODELS_DIR = ROOT / ".cache" / "models"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
COMMAND = [sys.executable, "-m", "llama_gguf"]
# Loading takes long on a machine that compiles something at the same time.
DEADLINE_SECONDS = 90.0


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
        """The key that --create-key created; empty before that."""
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
        """A connection for raw bytes, with a timeout for a model on a busy machine."""
        address = self.backend_address if backend else self.address
        return Wire(address, seconds=DEADLINE_SECONDS)

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
        """Status and JSON of a GET, with the matching key; (0, None) without a response."""
        key = self.backend_key if backend else self.key
        try:
            response = send_request(
                self.backend_address if backend else self.address, path, key=key
            )
        except OSError:
            return 0, None
        return response.status, json.loads(response.body or b"null")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """As ``processes.until``; fails at once if the process ends."""

        def look() -> bool:
            assert self.process.poll() is None, f"serve ended before {what}:\n{self.output}"
            return condition()

        processes.until(look, lambda: f"{what}:\n{self.output}", seconds=DEADLINE_SECONDS)

    def until_ready(self) -> None:
        self.until(lambda: self.get("/health")[0] == 200, "a ready model")

    def children(self) -> dict[int, str]:
        return processes.children(self.process.pid)

    def child(self, word: str) -> int:
        """The pid of the child whose command line contains *word*; 0 if there is none."""
        return next(
            (
                pid
                for pid, line in self.children().items()
                if word in line and "--list-devices" not in line
            ),
            0,
        )


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The demo model, downloaded by the command that users run."""
    subprocess.run(
        [*COMMAND, "pull", "smollm2", "--models-dir", str(MODELS_DIR)], check=True, timeout=600
    )
    return MODELS_DIR / f"{MODEL}.gguf"


def start(
    data_dir: Path,
    settings: Mapping[str, str],
    ports: tuple[int, int, int] | None = None,
    model: str = "smollm2",
) -> Served:
    """Start it, on *ports* (of the gateway, for health, of the engine) or on free ones."""
    port, port_health, port_backend = ports or free_ports(3)
    served = Served(
        None,  # type: ignore[arg-type]  # started below, with these ports
        data_dir,
        port,
        port_health,
        port_backend,
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
        # A sampled response may begin with half an emoji, and llama-server then omits an event.
        "EXTRA_ARGS": f"--temp 0 {settings.get('EXTRA_ARGS', '')}",
    }
    with (data_dir / "output.txt").open("wb") as output:
        served.process = subprocess.Popen(
            [*COMMAND, "serve", model, "--create-key"],
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
    """Settings over the usual ones; a module overrides this fixture."""
    return {}


@pytest.fixture(scope="module")
def served(
    model_file: Path, tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]
) -> Iterator[Served]:
    """One server for the tests of a module that do not change its state."""
    assert model_file.is_file()
    served = start(tmp_path_factory.mktemp("data"), settings)
    try:
        served.until_ready()
        yield served
    finally:
        stop(served)


@pytest.fixture
def own_server(model_file: Path, tmp_path: Path, settings: Mapping[str, str]) -> Iterator[Served]:
    """A server for one test, which may break it."""
    assert model_file.is_file()
    served = start(tmp_path, settings)
    try:
        served.until_ready()
        yield served
    finally:
        stop(served)
