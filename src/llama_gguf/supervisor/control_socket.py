"""The socket over which a second terminal operates a running server: status, restart, stop.

Protocol 1 is one JSON object a line. A client sends ``{"command": NAME}``, with further fields as
arguments. The server sends any number of ``{"progress": TEXT}``, then ``{"ok": true, ...}`` or
``{"ok": false, "error": TEXT}``; after that, the client may send the next command. Each last line
has the number of the protocol.

Only the owner of the process, and root, may use it: the socket has mode 0600, in a folder with mode
0700, and the kernel names the peer. A server whose folder cannot have such a socket uses one in
/tmp. A lock beside the socket shows whether its server runs, even on another machine that shares
the folder; what is left of a server that was killed is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from llama_gguf.digests import sha256
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.net.binding import MAX_SOCKET_PATH
from llama_gguf.net.threads import run_detached
from llama_gguf.values import Value

_log: Final = EventLog(__name__)

PROTOCOL: Final = 1
MAX_REQUEST_BYTES: Final = 8192
MAX_CLIENTS: Final = 16
IDLE_SECONDS: Final = 60.0
"""A client that sends nothing for so long is disconnected."""
WRITE_SECONDS: Final = 5.0
"""The same for a client that does not read."""
ACCEPT_PAUSE_SECONDS: Final = 0.1
CLOSE_SECONDS: Final = 1.0
"""At the end, for a disk that hangs."""
MAX_WAITING_BYTES: Final = 1 << 16
"""Of progress to a client that does not read; what exceeds this is left out."""

CAN_NAME_PEERS: Final = hasattr(socket, "SO_PEERCRED")
"""Whether the kernel names the process and the user of a peer, as Linux does."""

Json = Mapping[str, object]
Report = Callable[[str], None]
Handler = Callable[[Json, Report], Awaitable[Json]]
"""Runs a command with its arguments; may report progress, and raise UserError for the client."""


# Where it is --------------------------------------------------------------------------------------


def run_folder(data_dir: str) -> str:
    """The folder of the sockets of all servers with *data_dir*."""
    return os.path.join(data_dir, "run")


def spare_folder(data_dir: str) -> str:
    """The same for a *data_dir* that cannot have sockets, or whose path is too long."""
    digest = sha256(os.fsencode(os.path.realpath(data_dir))).hexdigest()[:16]
    return os.path.join(_spare_parent(), digest)


def _spare_parent() -> str:
    # Not TMPDIR, which may differ between the terminals. The folder has to be ours: see _private.
    return f"/tmp/llama-gguf-{os.geteuid()}"  # noqa: S108


def _places(data_dir: str, port: int) -> Iterator[str]:
    """Paths to try, the first one that is free is used."""
    yield os.path.join(run_folder(data_dir), "control.sock")
    yield os.path.join(run_folder(data_dir), f"control-{port}.sock")
    yield os.path.join(spare_folder(data_dir), f"control-{port}.sock")


class _Opened(Value):
    socket: socket.socket
    path: str
    lock: int
    """An open file; it is locked until the process ends."""
    reasons: tuple[str, ...]
    """Why the places before this one could not be used."""
    is_beside: bool
    """Whether another server uses the first place."""


class _Taken(OSError):
    """Another server uses this place."""


def _open(data_dir: str, port: int) -> _Opened:
    """A listening socket.

    Raises:
        OSError: no place can be used.
    """
    reasons: list[str] = []
    is_beside = False
    for path in _places(data_dir, port):
        try:
            return _Opened(*_open_at(path), tuple(reasons), is_beside)
        except OSError as error:
            is_beside = is_beside or isinstance(error, _Taken)
            reason = f"{path}: {error.strerror or error}"
            reasons += [reason] if reason not in reasons else []
    raise OSError("; ".join(reasons))


def _open_at(path: str) -> tuple[socket.socket, str, int]:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise OSError(f"a path of a socket has at most {MAX_SOCKET_PATH} bytes")
    folder = os.path.dirname(path)
    if os.path.dirname(folder) == _spare_parent():
        _make_private(_spare_parent())
    _make_private(folder)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    listener = socket.socket(socket.AF_UNIX)
    try:
        if not _try_lock(lock, path):
            raise _Taken("another server uses it")
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError("there is another file, which is no socket")
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(MAX_CLIENTS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        os.close(lock)
        raise
    return listener, path, lock


def _make_private(folder: str) -> None:
    """Create *folder* for its owner only.

    Raises:
        OSError: it belongs to another user, or its file system has no such permissions.
    """
    os.makedirs(folder, 0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    if found.st_mode & 0o077:
        os.chmod(folder, 0o700)
    if os.lstat(folder).st_mode & 0o077:
        raise PermissionError(f"{folder} cannot be restricted to its owner")


def _try_lock(lock: int, path: str) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(path) != 0
    return True


# The server ---------------------------------------------------------------------------------------


class ControlSocket:
    """Runs the commands of clients from ``async with`` to its end.

    It opens in the background, so that a disk that hangs does not delay a start. Without a socket,
    the server works all the same, and logs that it cannot be operated.

    Args:
        data_dir: DATA_DIR.
        port: of the gateway, which distinguishes servers with the same DATA_DIR.
        handlers: the commands, by name.
    """

    def __init__(self, data_dir: str, port: int, handlers: Mapping[str, Handler]) -> None:
        self._data_dir = data_dir
        self._port = port
        self._handlers = handlers
        self._opened: _Opened | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._serving = loop.create_task(self._serve(), name="serve the control socket")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._serving is not None
        tasks = {self._serving, *self._clients}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if self._opened is not None:
            self._opened.socket.close()
            path = self._opened.path
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await run_detached(lambda: os.unlink(path))

    async def _serve(self) -> None:
        data_dir, port = self._data_dir, self._port
        try:
            self._opened = opened = await run_detached(lambda: _open(data_dir, port))
        except OSError as error:
            _log.warning(
                "control_socket_missing",
                "No control socket: {reason}. `llama-gguf status` and the like cannot reach this "
                "server",
                reason=error.strerror or str(error),
            )
            return
        self._log_place(opened)
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(opened.socket)
            except OSError:  # such as too many open files
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            if len(self._clients) >= MAX_CLIENTS or not _is_allowed(sock):
                sock.close()
                continue
            task = loop.create_task(self._serve_client(sock), name="control client")
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    def _log_place(self, opened: _Opened) -> None:
        if opened.is_beside:
            _log.warning(
                "server_beside",
                "Another server uses the same DATA_DIR; to operate this one, add `--port {port}` "
                "to `llama-gguf status` and the like",
                port=self._port,
            )
        elif opened.reasons:
            _log.info(
                "control_socket_elsewhere",
                "The control socket is {file}, since others cannot be used: {reason}",
                file=opened.path,
                reason="; ".join(opened.reasons),
            )

    async def _serve_client(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_REQUEST_BYTES)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
                while line := await _within(IDLE_SECONDS, reader.readline()):
                    writer.write(_line(await self._run(line, writer)))
                    await _within(WRITE_SECONDS, writer.drain())
        finally:
            if _is_stuck(writer):
                writer.transport.abort()
            writer.close()

    async def _run(self, line: bytes, writer: asyncio.StreamWriter) -> Json:
        def report(text: str) -> None:
            if writer.transport.get_write_buffer_size() < MAX_WAITING_BYTES:
                writer.write(_line({"progress": text}))

        try:
            request = json.loads(line)
            handler = self._handlers[request["command"]]
        except (ValueError, TypeError, KeyError):
            return _error(f"This server knows the commands {', '.join(self._handlers)}.")
        try:
            return {"ok": True, "protocol": PROTOCOL, **await handler(request, report)}
        except UserError as error:
            return _error(str(error))


def _error(text: str) -> Json:
    return {"ok": False, "protocol": PROTOCOL, "error": text}


def _line(values: Json) -> bytes:
    return json.dumps(values).encode() + b"\n"


async def _within(seconds: float, work: Awaitable[bytes | None]) -> bytes | None:
    async with asyncio.timeout(seconds):
        return await work


def _is_stuck(writer: asyncio.StreamWriter) -> bool:
    return writer.transport.get_write_buffer_size() > 0


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user of the peer (unix(7)): 0 as a process that is not visible from here."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def _is_allowed(sock: socket.socket) -> bool:
    return peer_of(sock)[1] in (0, os.geteuid())
