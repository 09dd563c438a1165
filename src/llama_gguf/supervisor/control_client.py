"""Finds the running servers of a DATA_DIR, and sends them commands: see ``control_socket.py``."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from llama_gguf.errors import UserError
from llama_gguf.supervisor.control_socket import peer_of, run_folder, spare_folder

CONNECT_SECONDS: Final = 3.0
RESPONSE_SECONDS: Final = 10.0
"""Of a command that reports no progress."""
EXIT_SECONDS: Final = 10.0
NOT_RUNNING: Final = 3
"""The exit status if there is no server, as of init scripts (LSB)."""


class NotRunning(UserError):
    """There is no server to operate."""

    def __init__(self, message: str) -> None:
        super().__init__(message, NOT_RUNNING)


class Lost(NotRunning):
    """The server has closed the connection, as it does when it ends."""


class Server:
    """A connection to a running server."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._socket = sock
        self._stream = sock.makefile("rb")
        self.path = path
        self.pid = peer_of(sock)[0]
        """0 if it is in a container that hides its processes from us."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
        self._socket.close()

    def ask(
        self,
        command: str,
        *,
        on_progress: Callable[[str], object] = str,
        timeout: float | None = RESPONSE_SECONDS,
        **arguments: object,
    ) -> dict[str, Any]:
        """The response to *command*.

        Args:
            command: its name.
            on_progress: called with each report of progress.
            timeout: seconds until the next line; None = without limit.
            arguments: of the command.

        Raises:
            Lost: the server has ended.
            UserError: it does not respond, or refuses.
        """
        self._socket.settimeout(timeout)
        try:
            request = {"command": command, **arguments}
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while line := self._stream.readline():
                response = json.loads(line)
                if "ok" not in response:
                    on_progress(response["progress"])
                elif response["ok"]:
                    return dict(response)
                else:
                    raise UserError(response["error"])
        except TimeoutError:
            raise UserError(f"the server at {self.path} does not respond") from None
        except (ConnectionError, ValueError):
            pass
        raise Lost("the server has ended")

    def wait_for_end(self) -> None:
        """Wait until the server has closed the connection, and its process has ended."""
        self._socket.settimeout(None)
        with contextlib.suppress(OSError):
            while self._stream.read(1):
                pass
        until = time.monotonic() + EXIT_SECONDS
        while self.pid and time.monotonic() < until and os.path.exists(f"/proc/{self.pid}"):
            time.sleep(0.05)


def servers(data_dir: str) -> Iterator[Server]:
    """A connection to each running server with *data_dir*; the caller closes it.

    Raises:
        UserError: there is a socket that this user may not use.
    """
    for folder in (run_folder(data_dir), spare_folder(data_dir)):
        try:
            names = sorted(os.listdir(folder))
        except PermissionError:
            raise UserError(f"{folder} is for another user: run this as that user") from None
        except OSError:
            continue
        for name in names:
            if name.startswith("control") and name.endswith(".sock"):
                server = _connect(os.path.join(folder, name))
                if server is not None:
                    yield server


def _connect(path: str) -> Server | None:
    """A connection to the server at *path*; None if there is none."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(CONNECT_SECONDS)
    try:
        sock.connect(path)
    except PermissionError:
        sock.close()
        raise UserError(f"{path} is for another user: run this as that user") from None
    except OSError:
        sock.close()
        return None
    return Server(sock, path)


def find(data_dir: str, port: int | None = None) -> Server:
    """The running server with *data_dir*, and with *port* if there are several.

    Raises:
        NotRunning: there is none.
        UserError: there are several.
    """
    found: list[tuple[Server, dict[str, Any]]] = []
    for server in servers(data_dir):
        with contextlib.suppress(Lost):
            found.append((server, server.ask("status")))
    chosen = [one for one, facts in found if port in (None, facts["port"])]
    for server, _ in found:
        if server not in chosen or len(chosen) > 1:
            server.close()
    if len(chosen) == 1:
        return chosen[0]
    others = "".join(f"\n  {summary(facts)}" for _, facts in found)
    if chosen:
        raise UserError(f"several servers run with DATA_DIR={data_dir}: add --port.{others}")
    which = f"DATA_DIR={data_dir}" if port is None else f"DATA_DIR={data_dir} and PORT={port}"
    also = f" These run:{others}" if found else ""
    raise NotRunning(f"no server runs with {which}.{also}")


def summary(facts: dict[str, Any]) -> str:
    """A server in one line, from its status."""
    model = f"{facts['model']['name']}, " if facts["model"]["name"] else ""
    since = f"{facts['state']} since {facts['since']}"
    return f"pid {facts['pid']}: {model}{since}, {facts['url']}, DATA_DIR={facts['data_dir']}"
