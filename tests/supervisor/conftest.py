"""`llama-gguf serve` as a separate process, with tests/support/fake_llama.py as its engine.

No fixed sleeps: ``until`` polls a fact that is visible from outside (a line, a response, a
process), up to a deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import pytest

from llama_gguf.supervisor import pdeathsig
from tests.support.gguf_files import gguf
from tests.support.processes import is_running

DEADLINE_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.01
FAKE_LLAMA: Final = Path(__file__).parent.parent / "support/fake_llama.py"
KEY: Final = "sk-a-key-of-the-tests"
BACKEND_KEY: Final = "backend-key-that-stays-secret"
CHAT: Final = "/v1/chat/completions"

Found = TypeVar("Found")


def until(look: Callable[[], Found], context: Callable[[], str] = str) -> Found:
    """The result of *look* once it is true; after the deadline, fail with *context*."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s\n{context()}"
        time.sleep(LOOK_SECONDS)
    return found


# Processes ----------------------------------------------------------------------------------------


def until_gone(*pids: int) -> None:
    until(lambda: not any(is_running(pid) for pid in pids), lambda: f"still running: {pids}")


def children(parent: int) -> dict[int, str]:
    """The living children of *parent* and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_running(int(entry.name)):
            continue
        with contextlib.suppress(OSError, IndexError):
            stat = (entry / "stat").read_text(errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace")
    return found


def environment_of(pid: int) -> dict[str, str]:
    """The environment with which *pid* was started."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(pair.split("=", 1) for pair in raw.split("\0") if "=" in pair)


def tethered(*argv: str) -> list[str]:
    """*argv* as a process that dies with the tests, even if they are killed."""
    return [sys.executable, "-I", "-S", pdeathsig.__file__, str(os.getpid()), *argv]


# The client's side --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, path: str, body: bytes | None = None, *, key: str = KEY, **fields: str
) -> Answer:
    """GET *path*, or POST *body* to it. Underscores in the names of *fields* become dashes."""
    connection, response = _send(port, path, body, key=key, fields=fields)
    with contextlib.closing(connection):
        return Answer(response.status, response.read())


def _send(
    port: int, path: str, body: bytes | None, *, key: str, fields: dict[str, str]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    sent = {"authorization": f"Bearer {key}"} if key else {}
    sent |= {name.replace("_", "-"): value for name, value in fields.items()}
    try:
        connection.request("GET" if body is None else "POST", path, body, sent)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def status_or_none(port: int, path: str = "/ping") -> int | None:
    """The status of a response at *port*; None while there is none."""
    try:
        return ask(port, path, key="").status
    except (OSError, http.client.HTTPException):
        return None


class Stream:
    """A stream of events whose first event has been received."""

    def __init__(self, port: int, *, end: str) -> None:
        self._connection, self._response = _send(
            port, CHAT, b'{"stream": true}', key=KEY, fields={"x-until": end}
        )
        self._received = self._response.readline()
        assert self._received == b'data: {"n":0}\n'

    def rest(self) -> bytes:
        """The whole stream, to its end or to the point where it was cut."""
        with contextlib.closing(self._connection):
            try:
                self._received += self._response.read()
            except http.client.IncompleteRead as cut:
                self._received += cut.partial
            except ConnectionError:
                pass
        return self._received


# The supervisor's side ----------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports of loopback without a listener."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class Serve:
    """``llama-gguf serve`` with all its files in *folder*; may be started more than once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.keys_file = self.data / "api_keys.txt"
        self.model = folder / "tiny.gguf"
        self.model.write_bytes(gguf())
        self._streams_end = folder / "streams-end"
        self.engine = folder / "llama-server"
        self.write_engine(f'exec {sys.executable} {FAKE_LLAMA} "$@"')
        self.port, self.port_health, self.port_backend = free_ports(3)
        self.environ = {
            "PATH": os.defpath,
            "DATA_DIR": str(self.data),
            "LLAMA_SERVER": str(self.engine),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "PORT_HEALTH": str(self.port_health),
            "PORT_BACKEND": str(self.port_backend),
            "HEALTH_MODE": "ready",
        }
        self.stdout: int | None = None
        """A descriptor for its standard output, instead of a file."""
        self.stderr: int | None = None
        """The same for its standard error."""
        self.sockets: list[socket.socket] = []
        """Connections of a test, closed at its end."""
        self.is_subreaper = False
        """Whether it becomes the parent of orphans, like PID 1 of a container."""
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def write_engine(self, script: str) -> None:
        """Make LLAMA_SERVER a shell script."""
        self.engine.write_text(f"#!/bin/sh\n{script}\n")
        self.engine.chmod(0o755)

    def add_key(self, key: str = KEY, name: str = "tester") -> None:
        with open(self.keys_file, "a", encoding="ascii", opener=_private) as file:
            file.write(f"{name}:{key}\n")

    def start(self, *arguments: str, engine: str = "", **environ: str) -> Self:
        """Start it.

        Args:
            arguments: of the command, in addition to the model.
            engine: EXTRA_ARGS, which control the fake engine.
            environ: more variables.
        """
        return self.start_command(
            "serve", str(self.model), *arguments, EXTRA_ARGS=engine, **environ
        )

    def start_command(self, *arguments: str, **environ: str) -> Self:
        self._starts += 1
        with open(self._output("out"), "wb") as out, open(self._output("err"), "wb") as err:
            self._process = subprocess.Popen(
                tethered(*self._command(), *arguments),
                env=self.environ | environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out if self.stdout is None else self.stdout,
                stderr=err if self.stderr is None else self.stderr,
                start_new_session=True,
            )
        return self

    def start_ready(self, *arguments: str, engine: str = "", **environ: str) -> Self:
        """Start it, and wait until the model is served."""
        return self.start(*arguments, engine=engine, **environ).until_ready()

    def _command(self) -> list[str]:
        if not self.is_subreaper:
            return [sys.executable, "-m", "llama_gguf"]
        # prctl(2): PR_SET_CHILD_SUBREAPER survives exec.
        become = (
            "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); "
            "os.execv(sys.executable, [sys.executable, '-m', 'llama_gguf', *sys.argv[1:]])"
        )
        return [sys.executable, "-c", become]

    def until_ready(self) -> Self:
        self.until(lambda: self.out.rstrip().endswith("Ctrl-C."))
        return self

    def _output(self, name: str) -> Path:
        return self.folder / f"{name}-{self._starts}"

    @property
    def out(self) -> str:
        return self._output("out").read_text("utf-8", errors="replace")

    @property
    def err(self) -> str:
        return self._output("err").read_text("utf-8", errors="replace")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, look: Callable[[], Found]) -> Found:
        """Like ``until``, for a command that must stay alive."""

        def look_while_alive() -> Found:
            found = look()
            assert found or self.process.poll() is None, f"it has exited\n{self.out}\n{self.err}"
            return found

        return until(look_while_alive, lambda: f"{self.out}\n{self.err}")

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.err)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def left_with(self) -> int:
        """Wait for its exit, and return the exit status."""
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it has not exited\n{self.out}\n{self.err}")

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.left_with()

    # Its children

    def _child(self, mark: str) -> int:
        return next(
            (
                pid
                for pid, command in children(self.pid).items()
                if mark in command and "pdeathsig.py" not in command
            ),
            0,
        )

    @property
    def gateway_pid(self) -> int:
        """0 while there is none."""
        return self._child("--listen-fd")

    @property
    def engine_pid(self) -> int:
        """0 while there is none."""
        return self._child("support/fake_llama.py")

    # What a client sees

    def ask(self, path: str, body: bytes | None = None, *, key: str = KEY) -> Answer:
        return ask(self.port, path, body, key=key)

    def stream(self) -> Stream:
        """A stream that does not end before ``end_streams``."""
        return Stream(self.port, end=str(self._streams_end))

    def end_streams(self) -> None:
        self._streams_end.touch()

    def health(self) -> int | None:
        """The status of the health port; None while there is no response."""
        return status_or_none(self.port_health)

    def engine_state(self) -> str | None:
        """The engine's state in the gateway's ``/health``; None while there is no response."""
        try:
            return str(self.ask("/health", key="").json["engine"]["state"])
        except (OSError, http.client.HTTPException):
            return None

    def processes(self) -> dict[int, str]:
        """All running processes that this has started, including detached descendants."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and is_running(int(entry.name)):
                    raw = (entry / "environ").read_bytes().split(b"\0")
                    if f"DATA_DIR={self.data}".encode() in raw:
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(entry.name)] = command.decode(errors="replace")
        return found

    # What remains

    def logged(self) -> str:
        """All lines in the engine's logs."""
        files = sorted((self.data / "logs").glob("llama/*.log"))
        return "".join(f.read_text("utf-8", errors="replace") for f in files)

    def hang_up(self) -> None:
        while self.sockets:
            self.sockets.pop().close()

    def end(self) -> None:
        """End all processes and connections."""
        self.hang_up()
        if self._process is None:
            return
        remaining = list(children(self.pid)) if self._process.poll() is None else []
        self._process.kill()
        self._process.wait()
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def quoted(*words: str) -> str:
    """*words* as a value of EXTRA_ARGS."""
    return shlex.join(words)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Not started yet; its keys file contains KEY."""
    serve = Serve(tmp_path)
    serve.add_key()
    yield serve
    serve.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For clients that wait while the test continues."""
    pool = ThreadPoolExecutor(8)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)
