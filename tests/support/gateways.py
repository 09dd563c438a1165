"""The gateway as a process, in front of any engine, and ``fake_llama.py`` as a process.

For tests of the gateway over real sockets. ``fakes.Rig`` is a gateway without sockets, in the
process of the tests; ``serve.Serve`` has the supervisor too.
"""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.clients import Address, Wire
from tests.support.engines import FAKE_LLAMA
from tests.support.keys import BACKEND_KEY, KEYS_TEXT
from tests.support.messages import Response, request
from tests.support.processes import DEADLINE_SECONDS, free_port, until


class FakeLlama:
    """A running ``fake_llama.py``."""

    def __init__(self, process: subprocess.Popen[str], seen: Path, address: Address) -> None:
        self.process = process
        self.address = address
        self._seen = seen

    def seen(self, path: str = "") -> list[dict[str, Any]]:
        """The requests that reached it, without probes; only those for *path* if given."""
        text = self._seen.read_text() if self._seen.exists() else ""
        facts = [json.loads(line) for line in text.splitlines()]
        return [
            f
            for f in facts
            if f["path"] not in ("/health", "/props", "/v1/models")
            and (not path or f["path"] == path)
        ]


class GatewayProcess:
    """A running ``llama-gguf gateway``; its files are in *folder*."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        port: int,
        folder: Path,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.process = process
        self.port = port
        self.folder = folder
        self.trust = trust
        self.keys_file = folder / "api_keys.txt"
        self._wires: list[Wire] = []

    def close(self) -> None:
        for wire in self._wires:
            wire.close()

    def connect(self) -> Wire:
        wire = Wire(("127.0.0.1", self.port), self.trust)
        self._wires.append(wire)
        return wire

    def send_request(self, raw: bytes) -> Response:
        """The response to *raw*, sent on a new connection."""
        with self.connect() as wire:
            wire.send(raw)
            return wire.response()

    def health(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.send_request(request("GET", "/health", key=None)).json
        return facts

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended; its exit status."""
        return self.process.wait(DEADLINE_SECONDS)

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def logged(self) -> list[dict[str, str]]:
        """The lines of its access log for POSTs, so far."""
        return logged(self.folder / "logs")

    @property
    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


class Processes:
    """Starts processes, and ends all of them in ``close``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._count = 0

    def close(self) -> None:
        self._stack.close()

    def _start(
        self, argv: list[str], folder: Path, env: Mapping[str, str], pass_fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[str]:
        with (folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                argv,
                env={"PATH": "/usr/bin:/bin", **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                pass_fds=pass_fds,
            )
        self._stack.callback(_end, process)
        return process

    def _new_folder(self) -> Path:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder

    def fake_llama(
        self,
        *flags: str,
        socket_path: Path | None = None,
        host: str = "127.0.0.1",
        program: tuple[str, ...] = (sys.executable,),
    ) -> FakeLlama:
        folder = self._new_folder()
        where = ["--host", str(socket_path or host)] + ([] if socket_path else ["--port", "0"])
        seen = folder / "seen"
        argv = [*program, str(FAKE_LLAMA), *where, "--seen", str(seen), *flags]
        process = self._start(argv, folder, {})
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), (folder / "stderr").read_text()
        address = str(socket_path) if socket_path else (host, int(line.split()[-1][:-1]))
        return FakeLlama(process, seen, address)

    def gateway(
        self,
        backend: Address,
        *,
        keys: str | None = KEYS_TEXT,
        wait_for: int | None = 200,
        flags: tuple[str, ...] = (),
        program: tuple[str, ...] = (sys.executable, "-m", "llama_gguf"),
        pass_fds: tuple[int, ...] = (),
        port: int = 0,
        trust: ssl.SSLContext | None = None,
        **env: object,
    ) -> GatewayProcess:
        """A gateway in front of *backend*; returns when ``/health`` has the status *wait_for*.

        Args:
            backend: the address of the engine.
            keys: the text of its keys file; None for no file.
            wait_for: a status of ``/health``; None for any.
            flags: of its command.
            program: that is started.
            pass_fds: file descriptors that it inherits.
            port: on which it listens; 0 = a free one.
            trust: for a gateway with TLS, how its certificate is verified.
            env: settings, over the usual ones.
        """
        folder = self._new_folder()
        port = port or free_port()
        where = (
            {"BACKEND_SOCKET": backend}
            if isinstance(backend, str)
            else {"BACKEND_HOST": backend[0], "PORT_BACKEND": backend[1]}
        )
        usual = {"HOST": "127.0.0.1", "PORT": port, "DATA_DIR": folder, "LOG_DIR": folder / "logs"}
        usual |= {"BACKEND_API_KEY": BACKEND_KEY, "MAX_REQUESTS_PER_MINUTE": 100_000}
        settings = {**usual, **where, **env}
        gateway_env = {name: str(value) for name, value in settings.items()}
        if keys is not None:
            (folder / "api_keys.txt").write_text(keys)
            (folder / "api_keys.txt").chmod(0o600)
        process = self._start([*program, "gateway", *flags], folder, gateway_env, pass_fds)
        gateway = GatewayProcess(process, port, folder, trust)
        self._stack.callback(gateway.close)
        until(lambda: _is_up(gateway, wait_for), lambda: f"the gateway is up\n{gateway.log}")
        return gateway


def logged(folder: Path) -> list[dict[str, str]]:
    """The lines for POSTs in the access log in *folder*, so far."""
    path = folder / "api_access.log"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    lines = [dict(p.split("=", 1) for p in line.split()[1:]) for line in whole.splitlines()]
    return [line for line in lines if line["method"] == "POST"]


def _is_up(gateway: GatewayProcess, status: int | None) -> bool:
    assert gateway.process.poll() is None, gateway.log
    try:
        response = gateway.send_request(request("GET", "/health", key=None))
    except ConnectionRefusedError:
        return False
    return status is None or response.status == status


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
