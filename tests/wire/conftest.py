"""Real processes and real sockets, on loopback alone.

``ScriptedEngine`` is an engine in this process whose answers a test writes by hand, so that
nothing depends on how fast anything is. ``fake_llama`` is one as a process of its own. Whatever
is waited for has a deadline; nothing is slept for.
"""

from __future__ import annotations

import json
import queue
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import pytest

from tests.support.certificates import issue, trusting
from tests.support.fakes import BACKEND_KEY, KEYS_TEXT, Answer, request, take_answer

PATIENCE: Final = 15.0
"""Seconds after which what has not come is taken for never coming."""
FAKE_LLAMA: Final = Path(__file__).parents[1] / "support/fake_llama.py"

Address = tuple[str, int] | str


def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Poll *condition* until it is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it never happened: {what or condition}"
        time.sleep(0.01)


def connected(address: Address) -> socket.socket:
    if isinstance(address, tuple):
        sock = socket.create_connection(address, timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    return sock


class Wire:
    """A client: one connection, bytes out and bytes in.

    Args:
        address: where to.
        trust: speaks TLS, and trusts whom this says.
    """

    def __init__(self, address: Address, trust: ssl.SSLContext | None = None) -> None:
        self.sock = connected(address)
        if trust is not None:
            self.sock = trust.wrap_socket(
                self.sock, server_hostname=str(address[0]), suppress_ragged_eofs=False
            )
        self.buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def leave(self) -> None:
        self.sock.close()

    def say_goodbye(self) -> None:
        """Send an end, and stay to read."""
        if isinstance(self.sock, ssl.SSLSocket):
            # A record that says close_notify; unwrap() would read on for the peer's.
            self.sock.setblocking(False)
            with suppress(ssl.SSLError):
                self.sock.unwrap()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def receive(self) -> bool:
        """Read once; False at the end."""
        data = self.sock.recv(1 << 16)
        self.buffer += data
        return bool(data)

    def read_until(self, ending: bytes) -> bytes:
        """Everything up to and with *ending*."""
        while ending not in self.buffer:
            assert self.receive(), f"the end came before {ending!r}: {self.buffer!r}"
        at = self.buffer.index(ending) + len(ending)
        found, self.buffer = self.buffer[:at], self.buffer[at:]
        return found

    def read_rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self.receive():
            pass
        rest, self.buffer = self.buffer, b""
        return rest

    def was_reset(self) -> bool:
        """Read to the end; whether that was a reset, and no end that could be taken for whole.

        Python's ssl calls a reset an end in violation of the protocol.
        """
        try:
            while self.receive():
                pass
        except (ConnectionResetError, ssl.SSLEOFError):
            return True
        return False

    def answer(self) -> Answer:
        """The next final answer, complete unless the connection ends before it is."""
        while True:
            answer = self._whole_answer()
            if answer.status >= 200:
                return answer

    def _whole_answer(self) -> Answer:
        is_open = True
        while is_open:
            if b"\r\n\r\n" in self.buffer:
                answer, rest = take_answer(self.buffer)
                ends_with_connection = not (
                    answer.status < 200
                    or answer.status in (204, 304)
                    or "content-length" in answer
                    or "transfer-encoding" in answer
                )
                if answer.is_whole and not ends_with_connection:
                    self.buffer = rest
                    return answer
            is_open = self.receive()
        answer, self.buffer = take_answer(self.buffer)
        return answer


# Engines ------------------------------------------------------------------------------------------


class Visit:
    """One request at the scripted engine, to be answered by hand."""

    def __init__(self, sock: socket.socket, head: bytes, body: bytes) -> None:
        self.sock = sock
        self.head = head
        self.body = body
        self.is_over = threading.Event()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def finish(self, data: bytes = b"") -> None:
        """Send *data* and close."""
        with suppress(OSError):
            self.sock.sendall(data)
        self.is_over.set()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_over.set()

    def send_until_cut(self, data: bytes) -> None:
        """Send *data* again and again until the gateway has let go of the connection."""
        with suppress(ConnectionError):
            while True:
                self.sock.sendall(data)
        self.is_over.set()

    def wait_until_cut(self) -> None:
        """Return when the gateway has let go of the connection; fail if it never does."""
        with suppress(ConnectionResetError):
            assert self.sock.recv(1) == b""
        self.is_over.set()


class ScriptedEngine:
    """Tells probes that it is ready, and hands everything else to the test."""

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._visits: queue.Queue[Visit] = queue.Queue()
        self._given: list[Visit] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for visit in [*self._given, *self._visits.queue]:
            visit.is_over.set()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        with sock, suppress(OSError), sock.makefile("rb") as file:
            head = b"".join(iter(file.readline, b"\r\n"))
            if head.startswith(b"GET /health "):
                sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
            elif head.startswith(b"GET /props "):
                props = json.dumps({"total_slots": self._slots, "model_alias": "m"}).encode()
                length = b"Content-Length: %d\r\n\r\n" % len(props)
                sock.sendall(b"HTTP/1.1 200 OK\r\n" + length + props)
            elif head:
                _, found, length = head.lower().partition(b"content-length: ")
                body = file.read(int(length.split(b"\r\n")[0])) if found else b""
                visit = Visit(sock, head, body)
                self._visits.put(visit)
                visit.is_over.wait()

    def visit(self) -> Visit:
        """The next request that comes to the engine."""
        visit = self._visits.get(timeout=PATIENCE)
        self._given.append(visit)
        return visit

    @property
    def has_visit(self) -> bool:
        """Whether there is a request that no ``visit`` has returned yet."""
        return not self._visits.empty()


class FakeLlama:
    """``fake_llama`` as a process."""

    def __init__(self, process: subprocess.Popen[str], seen: Path, address: Address) -> None:
        self.process = process
        self.address = address
        self._seen = seen

    def seen(self, path: str = "") -> list[dict[str, Any]]:
        """The requests that reached it, without probes; only those for *path* if it is given."""
        text = self._seen.read_text() if self._seen.exists() else ""
        facts = [json.loads(line) for line in text.splitlines()]
        return [
            f
            for f in facts
            if f["path"] not in ("/health", "/props") and (not path or f["path"] == path)
        ]


# The gateway --------------------------------------------------------------------------------------


class GatewayProcess:
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
            wire.leave()

    def connect(self) -> Wire:
        wire = Wire(("127.0.0.1", self.port), self.trust)
        self._wires.append(wire)
        return wire

    def ask(self, raw: bytes) -> Answer:
        """The answer to *raw* on a connection of its own."""
        with self.connect() as wire:
            wire.send(raw)
            return wire.answer()

    def health(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.ask(request("GET", "/health", key=None)).body)
        return facts

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Processes:
    """Starts processes, and ends every one of them."""

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

    def fake_llama(self, *flags: str, socket_path: Path | None = None) -> FakeLlama:
        folder = self._new_folder()
        where = ["--host", str(socket_path)] if socket_path else ["--port", "0"]
        seen = folder / "seen"
        argv = [sys.executable, str(FAKE_LLAMA), *where, "--seen", str(seen), *flags]
        process = self._start(argv, folder, {})
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), (folder / "stderr").read_text()
        address = str(socket_path) if socket_path else ("127.0.0.1", int(line.split()[-1][:-1]))
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
        trust: ssl.SSLContext | None = None,
        **env: object,
    ) -> GatewayProcess:
        """A gateway in front of *backend*; returns when ``/health`` says *wait_for*.

        With *trust*, that is asked over TLS.
        """
        folder = self._new_folder()
        port = free_port()
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
        eventually(lambda: _is_up(gateway, wait_for), "the gateway is up")
        return gateway


def _is_up(gateway: GatewayProcess, status: int | None) -> bool:
    assert gateway.process.poll() is None, gateway.log
    try:
        answer = gateway.ask(request("GET", "/health", key=None))
    except ConnectionRefusedError:
        return False
    return status is None or answer.status == status


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture(scope="module")
def shared_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("wire"))
    yield processes
    processes.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    """An engine with four slots whose answers are written by hand."""
    with ScriptedEngine() as engine:
        yield engine


class NewGateway(Protocol):
    def __call__(self, **env: object) -> GatewayProcess: ...


@pytest.fixture
def new_gateway(engine: ScriptedEngine, processes: Processes) -> NewGateway:
    """Starts a gateway in front of ``engine``, with settings of one's own."""
    return lambda **env: processes.gateway(("127.0.0.1", engine.port), **env)


@pytest.fixture
def new_tls_gateway(engine: ScriptedEngine, processes: Processes, tmp_path: Path) -> NewGateway:
    """As ``new_gateway``, over TLS; its certificate is in ``tmp_path``."""
    files = issue().write(tmp_path)
    trust = trusting()
    return lambda **env: processes.gateway(
        ("127.0.0.1", engine.port), trust=trust, **{**files, **env}
    )


@pytest.fixture
def gateway(new_gateway: NewGateway) -> GatewayProcess:
    """A gateway in front of ``engine``."""
    return new_gateway()
