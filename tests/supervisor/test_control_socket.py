"""The socket of a second terminal: who may use it, where it is, and that no client blocks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.errors import UserError
from llama_gguf.net.binding import MAX_SOCKET_PATH
from llama_gguf.supervisor import control_socket
from llama_gguf.supervisor.control_socket import (
    MAX_CLIENTS,
    ControlSocket,
    Json,
    Report,
    run_folder,
    spare_folder,
)

SECONDS = 20.0


async def echo(arguments: Json, report: Report) -> Json:
    report("working")
    return {"arguments": dict(arguments)}


async def refuse(arguments: Json, report: Report) -> Json:
    raise UserError("not now")


async def flood(arguments: Json, report: Report) -> Json:
    for _ in range(10_000):
        report("x" * 1000)
    return {"text": "x" * 1_000_000}


HANDLERS = {"echo": echo, "refuse": refuse, "flood": flood}


class Client:
    def __init__(self, path: str) -> None:
        self.path = path

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(self, line: bytes) -> None:
        self.writer.write(line)

    async def receive(self) -> Any:
        line = await self.reader.readline()
        return json.loads(line) if line else None


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def path_of(data: Path, name: str = "control.sock") -> str:
    return os.path.join(run_folder(str(data)), name)


async def opened(server: ControlSocket) -> str:
    """The path of its socket, once it is open."""
    while server._opened is None:  # noqa: ASYNC110  # a fact about a thread
        await asyncio.sleep(0.01)
    return server._opened.path


def run(
    data: Path, scenario: Callable[[str], Awaitable[None]], *, port: int = 8000, **handlers: Any
) -> None:
    async def both() -> None:
        async with (
            asyncio.timeout(SECONDS),
            ControlSocket(str(data), port, handlers or HANDLERS) as server,
        ):
            await scenario(await opened(server))

    asyncio.run(both())


def test_a_client_gets_progress_and_then_the_result_of_each_command(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        async with Client(path) as client:
            for n in range(2):
                client.send(b'{"command": "echo", "n": %d}\n' % n)
                assert await client.receive() == {"progress": "working"}
                result = await client.receive()
                assert result == {
                    "ok": True,
                    "protocol": 1,
                    "arguments": {"command": "echo", "n": n},
                }

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"command": "refuse"}\n', "not now"),
        (b'{"command": "fly"}\n', "This server knows the commands echo, refuse, flood."),
        (b'{"command": ["echo"]}\n', "This server knows the commands echo, refuse, flood."),
        (b"{}\n", "This server knows the commands echo, refuse, flood."),
        (b"[]\n", "This server knows the commands echo, refuse, flood."),
        (b"\xff\n", "This server knows the commands echo, refuse, flood."),
    ],
)
def test_a_command_that_cannot_be_run_is_an_error_and_the_next_one_works(
    tmp_path: Path, line: bytes, error: str
) -> None:
    async def scenario(path: str) -> None:
        async with Client(path) as client:
            client.send(line)
            assert await client.receive() == {"ok": False, "protocol": 1, "error": error}
            client.send(b'{"command": "echo"}\n')
            assert await client.receive() == {"progress": "working"}

    run(tmp_path, scenario)


def test_an_endless_line_ends_the_connection(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        async with Client(path) as client:
            client.send(b"x" * 100_000)
            with contextlib.suppress(ConnectionError):
                assert await client.receive() is None

    run(tmp_path, scenario)


def test_a_client_that_does_not_read_is_cut_and_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "WRITE_SECONDS", 0.1)

    async def scenario(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.connect(path)
            stuck.sendall(b'{"command": "flood"}\n' * 10)
            async with Client(path) as client:
                client.send(b'{"command": "echo"}\n')
                assert await client.receive() == {"progress": "working"}
            received = 0
            stuck.setblocking(False)
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.3)  # longer than the server waits
            while some := len(await loop.sock_recv(stuck, 1 << 20)):
                received += some
            assert received < 3_000_000

    run(tmp_path, scenario)


def test_more_clients_than_allowed_are_closed_at_once(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(path)) for _ in range(MAX_CLIENTS)]
            for client in clients:
                client.send(b'{"command": "echo"}\n')
                assert await client.receive() == {"progress": "working"}
            async with Client(path) as one_more:
                assert await one_more.receive() is None

    run(tmp_path, scenario)


# Who may use it -----------------------------------------------------------------------------------


def test_socket_and_folder_are_for_their_owner_only(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        assert path == path_of(tmp_path)
        modes.extend(mode_of(place) for place in (path, os.path.dirname(path)))

    modes: list[int] = []
    (tmp_path / "run").mkdir(mode=0o755)
    run(tmp_path, scenario)

    assert modes == [0o600, 0o700]


@pytest.mark.parametrize(("uid", "is_allowed"), [(0, True), (os.geteuid(), True), (12345, False)])
def test_a_peer_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, is_allowed: bool
) -> None:
    monkeypatch.setattr(control_socket, "peer_of", lambda sock: (1, uid))

    async def scenario(path: str) -> None:
        async with Client(path) as client:
            client.send(b'{"command": "echo"}\n')
            with contextlib.suppress(ConnectionError):
                assert (await client.receive() is not None) is is_allowed

    run(tmp_path, scenario)


# Where it is --------------------------------------------------------------------------------------


def test_the_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    async def scenario(path: str) -> None:
        assert mode_of(path)

    run(tmp_path, scenario)

    assert not os.path.exists(path_of(tmp_path))


def test_the_socket_of_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path_of(tmp_path))

    async def scenario(path: str) -> None:
        assert path == path_of(tmp_path)
        async with Client(path) as client:
            client.send(b'{"command": "echo"}\n')
            assert await client.receive() == {"progress": "working"}

    run(tmp_path, scenario)


def test_a_second_server_has_a_socket_named_by_its_port(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(path: str) -> None:
        assert path == path_of(tmp_path)
        async with ControlSocket(str(tmp_path), 8010, HANDLERS) as second:
            assert await opened(second) == path_of(tmp_path, "control-8010.sock")

    run(tmp_path, scenario)

    assert "add `--port 8010` to `llama-gguf status`" in caplog.text


def test_a_path_that_is_too_long_or_a_folder_of_another_kind_gets_a_socket_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = tmp_path / ("x" * MAX_SOCKET_PATH)

    async def scenario(path: str) -> None:
        assert path == os.path.join(spare_folder(str(data)), "control-8000.sock")
        assert mode_of(os.path.dirname(path)) == 0o700

    run(data, scenario)
    assert "a path of a socket has at most 107 bytes" in caplog.text

    data = tmp_path / "other"
    data.mkdir()
    (data / "run").write_text("a file where the folder should be")
    run(data, scenario)


def test_without_any_place_the_server_works_and_the_reason_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    monkeypatch.setattr(control_socket, "_spare_parent", lambda: str(tmp_path / "run" / "x"))

    async def both() -> None:
        async with asyncio.timeout(SECONDS), ControlSocket(str(tmp_path), 1, HANDLERS) as server:
            assert server._serving is not None
            await server._serving

    asyncio.run(both())

    assert "No control socket: " in caplog.text
