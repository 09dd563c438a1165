"""``llama-gguf serve`` as a process, with ``fake_llama.py`` as its engine."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

import pytest

from tests.support import clients
from tests.support.clients import Wire, status_or_none
from tests.support.engines import FAKE_LLAMA
from tests.support.gguf_files import gguf
from tests.support.keys import KEY
from tests.support.messages import Response, event, request, take_response
from tests.support.processes import (
    DEADLINE_SECONDS,
    children,
    command_line,
    environment_of,
    free_ports,
    is_running,
    tethered,
    until,
)

CHAT: Final = "/v1/chat/completions"

Found = TypeVar("Found")


class Stream:
    """A stream of events that has begun: the first one has been read.

    *end* is a file: the engine sends the last event when it exists.
    """

    def __init__(self, port: int, *, end: str) -> None:
        self._wire = Wire(("127.0.0.1", port))
        try:
            self._wire.send(request("POST", CHAT, f"x-until: {end}", body=b'{"stream": true}'))
            self._wire.buffer = self._wire.read_until(event(0)) + self._wire.buffer
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._wire.close()

    def rest(self) -> bytes:
        """All events of it, to its end, whether that is a clean one or a cut."""
        with self._wire:
            with contextlib.suppress(ConnectionError):
                return self._wire.response().body
            found = take_response(self._wire.buffer)
            assert found is not None
            return found[0].body


class Serve:
    """``llama-gguf serve`` with all of its files in *folder*; can be started repeatedly."""

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
        """A file descriptor for its standard output, which is a file otherwise."""
        self.stderr: int | None = None
        """The same for its standard error."""
        self.sockets: list[socket.socket] = []
        """Connections of a test that are closed at its end."""
        self.terminal: int | None = None
        """A file descriptor of its controlling terminal."""
        self.is_subreaper = False
        """Whether it becomes the parent of orphans, as PID 1 of a container does."""
        self._streams: list[Stream] = []
        self._has_ended = False
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
            arguments: of the command, after the model.
            engine: EXTRA_ARGS, which determine how ``fake_llama.py`` behaves.
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
                stdin=subprocess.DEVNULL if self.terminal is None else self.terminal,
                stdout=out if self.stdout is None else self.stdout,
                stderr=err if self.stderr is None else self.stderr,
                start_new_session=True,
            )
        return self

    def start_ready(self, *arguments: str, engine: str = "", **environ: str) -> Self:
        """Start it, and wait until the model is served."""
        return self.start(*arguments, engine=engine, **environ).until_ready()

    def _command(self) -> list[str]:
        if self.terminal is not None:
            return in_terminal("-P", "-m", "llama_gguf")
        if not self.is_subreaper:
            return [sys.executable, "-P", "-m", "llama_gguf"]
        # prctl(2): PR_SET_CHILD_SUBREAPER survives exec.
        become = (
            "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); "
            "os.execv(sys.executable, [sys.executable, '-P', '-m', 'llama_gguf', *sys.argv[1:]])"
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
        """As ``processes.until``; fails at once if the process ends."""

        def look_while_alive() -> Found:
            found = look()
            assert found or self.process.poll() is None, f"it has ended\n{self.out}\n{self.err}"
            return found

        return until(look_while_alive, lambda: f"{self.out}\n{self.err}")

    def until_printed(self, text: str) -> None:
        self.until(lambda: text in self.err)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended; its exit status."""
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it has not ended\n{self.out}\n{self.err}")

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    # Its children

    def _child(self, mark: str) -> int:
        return next(
            (
                pid
                for pid, command in children(self.pid).items()
                if mark in command
                and not any(passing in command for passing in ("pdeathsig.py", "--list-devices"))
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

    def send_request(self, path: str, body: bytes | None = None, *, key: str = KEY) -> Response:
        return clients.send_request(self.port, path, body, key=key)

    def stream(self) -> Stream:
        """A stream that lasts until ``end_streams``."""
        stream = Stream(self.port, end=str(self._streams_end))
        self._streams.append(stream)
        if self._has_ended:  # meanwhile, if this runs in another thread
            stream.close()
        return stream

    def end_streams(self) -> None:
        self._streams_end.touch()

    def health(self) -> int | None:
        """The status at the health port; None if nothing responds."""
        return status_or_none(self.port_health)

    def engine_state(self) -> str | None:
        """The engine's state in ``/health``; None if the gateway does not respond."""
        try:
            return str(self.send_request("/health", key="").json["engine"]["state"])
        except OSError:
            return None

    def processes(self) -> dict[int, str]:
        """Every running process that this started, directly or not."""
        found = {}
        mine = str(self.data)
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            with contextlib.suppress(OSError):
                if is_running(pid) and environment_of(pid).get("DATA_DIR") == mine:
                    found[pid] = command_line(pid)
        return found

    # Its files, and its end

    def logged(self) -> str:
        """Every line in the logs of the engine."""
        files = sorted((self.data / "logs").glob("llama/*.log"))
        return "".join(f.read_text("utf-8", errors="replace") for f in files)

    def close(self) -> None:
        while self.sockets:
            self.sockets.pop().close()

    def end(self) -> None:
        """Close its connections, and kill it and its children."""
        self.close()
        self._has_ended = True
        for stream in self._streams:
            stream.close()
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


def in_terminal(*arguments: str, nohup: bool = False) -> list[str]:
    """A command that runs Python with its standard input as its controlling terminal.

    It must be started in a new session.
    """
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN); " if nohup else ""
    become = (
        "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        f"{ignored}os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-c", become, *arguments]
