"""Counts the instructions and system calls per request and per event, without a clock.

usage: python -m perf.cost     (needs valgrind and strace; exit status 1 above a ceiling)

Instructions are those of a gateway in one process with transports that do nothing: without the
kernel and the event loop. Each is the difference between a long and a short run: without the
start. The ceilings are for CPython 3.11, 5 % above the measured values.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from llama_gguf.gateway.client_connection import ClientConnection
from llama_gguf.gateway.upstream_connection import UpstreamConnection
from llama_gguf.net.transport import Transport
from llama_gguf.telemetry.recorder import Recorder
from tests.support.fakes import Rig
from tests.support.keys import BACKEND_KEY, KEY, KEYS_TEXT
from tests.support.messages import OK, STREAM_HEAD, chunk, request

CEILINGS: Final = {
    "instructions a request": 131_000,
    "instructions an event": 4_800,
    "system calls a request": 7,
}
BODY: Final = b'{"messages":[{"role":"user","content":"' + b"Tell me about llamas. " * 25 + b'"}]}'
_TEXT: Final = b"lorem ipsum dolor sit amet " * 16
_ANSWERED: Final = (
    b'{"id":"chatcmpl-x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"finish_reason":"stop","message":{"role":"assistant","content":"%b"}}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":90,"total_tokens":99}}' % _TEXT
)
ANSWER: Final = OK.replace(b"11", b"%d" % len(_ANSWERED)).replace(b'{"ok":true}', _ANSWERED)
EVENT: Final = chunk(b'data: {"choices":[{"index":0,"delta":{"content":" tok"}}]}\n\n')
FEW: Final = 300
MANY: Final = 1300


class NoTransport(Transport):
    """A transport whose own cost is negligible."""

    def write(self, data: bytes) -> None:
        pass

    def write_now(self, data: bytes) -> None:
        pass

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        pass

    def is_closing(self) -> bool:
        return False


def work(requests: int, events: int) -> None:
    """The program that valgrind runs: one client and one connection to the engine."""
    with tempfile.TemporaryDirectory() as folder:
        services = Rig(Path(folder), max_requests_per_minute=10**9).services
        services.recorder = Recorder(
            [
                services.replica_sink,
                services.metrics,
                services.usage,
                services.access_log,
            ],
            wall=lambda: services.clock.wall,
        )
        client = ClientConnection(services)
        client.connection_made(NoTransport())
        (replica,) = services.fleet.replicas.values()
        engine = UpstreamConnection(replica.pool)
        engine.connection_made(NoTransport())
        replica.pool.give_back(engine)
        message = request(body=BODY)
        for _ in range(requests):
            engine.requests = 0  # otherwise the pool would retire it
            client.data_received(message)
            engine.data_received(ANSWER)
        client.data_received(message)
        engine.data_received(STREAM_HEAD)
        for _ in range(events):
            engine.data_received(EVENT)


def instructions(requests: int, events: int) -> int:
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-m", "perf.cost", "work", str(requests), str(events)),
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


def measured_instructions() -> dict[str, float]:
    base = instructions(FEW, FEW)
    return {
        "instructions a request": (instructions(MANY, FEW) - base) / (MANY - FEW),
        "instructions an event": (instructions(FEW, MANY) - base) / (MANY - FEW),
    }


# System calls -------------------------------------------------------------------------------------


def respond_to_all(listener: socket.socket) -> None:
    """A substitute for the engine: 200 to every request, one connection at a time."""
    with contextlib.suppress(OSError):
        while True:
            connection = listener.accept()[0]
            threading.Thread(target=_respond, args=(connection,), daemon=True).start()


def _respond(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while connection.recv(65536):
            connection.sendall(ANSWER)


def measured_system_calls() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as engine:
        threading.Thread(target=respond_to_all, args=(engine,), daemon=True).start()
        counts = [system_calls(Path(folder), engine.getsockname()[1], n) for n in (FEW, MANY)]
    return {"system calls a request": (counts[1] - counts[0]) / (MANY - FEW)}


def system_calls(folder: Path, engine_port: int, requests: int) -> int:
    """The system calls of a gateway that serves *requests* on one connection, from start to end."""
    keys = folder / "api_keys.txt"
    keys.write_text(KEYS_TEXT)
    keys.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_BACKEND": str(engine_port),
        "DATA_DIR": str(folder),
        "AUTH_KEYS_FILE": str(keys),
        "BACKEND_API_KEY": BACKEND_KEY,
        "MAX_REQUESTS_PER_MINUTE": "1000000",
    }
    summary = folder / "strace"
    command = ["strace", "-D", "-f", "-c", "-o", str(summary), sys.executable, "-m", "llama_gguf"]
    with subprocess.Popen(
        [*command, "gateway"], env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stderr
        for line in gateway.stderr:
            if "Engine state: ready" in line:
                break
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(requests):
            client.request("POST", "/v1/completions", BODY, {"x-api-key": KEY})
            client.getresponse().read()
        client.close()
        gateway.send_signal(signal.SIGTERM)
        gateway.stderr.read()
    rows = [line.split() for line in summary.read_text().splitlines()]
    return sum(int(row[3]) for row in rows if row[0][0].isdigit() and row[-1] != "total")


# ------------------------------------------------------------------------------------------------


def main() -> int:
    if sys.argv[1:2] == ["work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
        return 0
    missing = [program for program in ("valgrind", "strace") if not shutil.which(program)]
    if missing:
        sys.stderr.write(f"{' and '.join(missing)} must be installed, as by apt-get install\n")
        return 1
    found = measured_instructions() | measured_system_calls()
    table = Table("", "measured", "ceiling")
    for name, ceiling in CEILINGS.items():
        table.add_row(name, f"{found[name]:,.1f}", f"{ceiling:,}")
    Console().print(table)
    return int(any(found[name] > ceiling for name, ceiling in CEILINGS.items()))


if __name__ == "__main__":
    sys.exit(main())
