"""The gateway's life in this process, told by a supervisor; ``tests/wire`` has it as a process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.activity import GREETING, OWNERS
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway.client_connection import ClientConnection
from llama_gguf.gateway.server import Gateway, adopt
from llama_gguf.gateway.services import Services
from llama_gguf.net.binding import listen
from llama_gguf.values import replace
from tests.support.certificates import issue, names_in, trusting
from tests.support.keys import KEYS_TEXT
from tests.support.messages import Response, read_responses

READY = EngineStatus(ChildState.READY, since=0.0, slots=3, model="m")


# Listening ----------------------------------------------------------------------------------------


def test_an_inherited_socket_does_not_block_and_is_not_passed_on() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as original:
        fd = os.dup(original.fileno())
        os.set_inheritable(fd, True)
        with closing(adopt(fd)) as adopted:
            assert adopted.getsockname() == original.getsockname()
            assert not adopted.getblocking()
            assert not os.get_inheritable(fd)


# Its life -----------------------------------------------------------------------------------------


class Told:
    """A gateway that runs, with the supervisor's end of its channel."""

    def __init__(self, gateway: Gateway, address: tuple[str, int]) -> None:
        self.gateway = gateway
        self.address = address
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    def tell(self, status: EngineStatus) -> None:
        self.writer.write(status.to_line())

    async def get(self, path: str) -> Response:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return read_responses(data)[0]

    async def until(self, state: ChildState) -> None:
        while json.loads((await self.get("/health")).body)["engine"]["state"] != state:
            pass


Scenario = Callable[[Told], Awaitable[None]]


def run(folder: Path, scenario: Scenario, keys: str | None = KEYS_TEXT, **settings: Any) -> int:
    """Run a gateway with *scenario* beside it, wait for both, and return its exit status."""
    keys_file = folder / "keys.txt"
    if keys is not None:
        keys_file.write_text(keys)
        keys_file.chmod(0o600)

    async def both() -> int:
        ours, theirs = socket.socketpair()
        listener = listen("127.0.0.1", 0)
        address = listener.getsockname()
        usual = Settings.of(
            auth_keys_file=str(keys_file), log_dir=str(folder), data_dir=str(folder), **settings
        )
        gateway = Gateway(usual, listener, theirs)
        told = Told(gateway, address)
        told.reader, told.writer = await asyncio.open_unix_connection(sock=ours)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            running = group.create_task(gateway.run())
            assert await told.reader.readexactly(len(GREETING)) == GREETING
            await scenario(told)
            told.writer.close()
            status = await running
        await told.writer.wait_closed()
        return status

    return asyncio.run(both())


def test_it_greets_its_supervisor_and_goes_when_that_has_gone(tmp_path: Path) -> None:
    async def nothing(told: Told) -> None:
        pass

    assert run(tmp_path, nothing) == 0


def test_a_task_of_its_own_that_fails_ends_it_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise KeyError("a bug")

    async def scenario(told: Told) -> None:
        told.gateway._start(fail(), "keep the usage")
        assert await told.reader.read() == b""  # it has gone by itself

    assert run(tmp_path, scenario) == 1
    assert "'keep the usage' failed" in caplog.text
    assert "KeyError" in caplog.text


def test_the_owners_of_the_last_requests_are_reported_before_it_ends(tmp_path: Path) -> None:
    async def scenario(told: Told) -> None:
        told.tell(replace(READY, prompt_cache={"life": 1}))
        await told.reader.readline()
        (replica,) = told.gateway.services.fleet.replicas.values()
        assert replica.owners is not None
        replica.owners.add("-")
        told.gateway.stop()
        assert (await told.reader.read()).endswith(OWNERS + b'{"127.0.0.1:8080": ["-"]}\n')

    run(tmp_path, scenario)


def test_it_knows_of_the_engine_what_its_supervisor_tells(tmp_path: Path) -> None:
    async def scenario(told: Told) -> None:
        assert (await told.get("/health")).status == 503
        told.tell(READY)
        await told.until(ChildState.READY)
        response = await told.get("/health")
        assert response.status == 200
        assert json.loads(response.body)["slots"] == {"used": 0, "total": 3}

        told.tell(READY.moved(ChildState.BACKOFF, 5.0, detail="it died"))
        await told.until(ChildState.BACKOFF)
        response = await told.get("/health")
        assert response.status == 503
        assert json.loads(response.body)["engine"]["detail"] == "it died"

    run(tmp_path, scenario)


def test_it_speaks_tls_on_any_loop_and_shows_the_newest_certificate(tmp_path: Path) -> None:
    files = issue("old.example").write(tmp_path)

    async def names_shown(told: Told) -> set[str]:
        reader, writer = await asyncio.open_connection(*told.address, ssl=trusting())
        writer.write(b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b" 200 OK\r\n" in await reader.read()
        names = names_in(writer.get_extra_info("peercert"))
        writer.close()
        await writer.wait_closed()
        return names

    async def scenario(told: Told) -> None:
        assert await names_shown(told) == {"old.example"}
        issue("new.example").write(tmp_path)
        os.kill(os.getpid(), signal.SIGHUP)
        while await names_shown(told) != {"new.example"}:
            pass

    run(tmp_path, scenario, **{name.lower(): path for name, path in files.items()})


def test_it_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    async def scenario(told: Told) -> None:
        told.gateway.stop()
        assert await told.reader.read() == b"", "it lets go of its supervisor"

    run(tmp_path, scenario)


def test_after_its_end_nobody_listens(tmp_path: Path) -> None:
    addresses = []

    async def scenario(told: Told) -> None:
        addresses.append(told.address)

    run(tmp_path, scenario)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[0], timeout=5)


def test_the_last_lines_of_the_access_log_are_written_at_the_end(tmp_path: Path) -> None:
    async def scenario(told: Told) -> None:
        await told.get("/ping?x")

    run(tmp_path, scenario)

    assert " path=/ping " in (tmp_path / "api_access.log").read_text()


def test_an_idle_client_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def scenario(told: Told) -> None:
        reader, writer = await asyncio.open_connection(*told.address)
        writer.write(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        told.gateway.stop()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("keys", "settings", "said"),
    [
        (None, {}, "every request will be rejected"),
        ("# none\n", {}, "every request will be rejected"),
        (KEYS_TEXT, {}, "keys.txt: 3\n"),
        (None, {"auth_enabled": False}, "any client that can reach this port can use the model"),
    ],
)
def test_how_it_is_guarded_is_said_at_the_start(
    keys: str | None,
    settings: dict[str, Any],
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nothing(told: Told) -> None:
        pass

    with caplog.at_level(logging.INFO):
        run(tmp_path, nothing, keys, **settings)

    assert said in caplog.text


# Time ---------------------------------------------------------------------------------------------


def has_input(connection: object) -> bool:
    assert isinstance(connection, ClientConnection)
    return bool(connection._received)


async def has_received(services: Services) -> None:
    """Return when a part of a head has come in."""
    while not any(has_input(c) for c in services.connections):  # noqa: ASYNC110 - by turns of the loop
        await asyncio.sleep(0)


def test_after_a_freeze_no_time_out_is_judged_before_what_has_come_is_read(tmp_path: Path) -> None:
    """A process that was stopped for a minute finds a whole request, and a timer that is due."""

    async def scenario(told: Told) -> None:
        gateway = told.gateway
        services = gateway.services
        real = services.clock.now
        reader, writer = await asyncio.open_connection(*told.address)
        writer.write(b"GET /ping HTTP/1.1\r\nHost: a\r\n")
        await has_received(services)
        services.clock.now = lambda: real() + 3600
        writer.write(b"\r\n")
        gateway._tick()

        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()

    run(tmp_path, scenario)


def test_after_a_freeze_what_is_overdue_ends_all_the_same(tmp_path: Path) -> None:
    async def scenario(told: Told) -> None:
        gateway = told.gateway
        real = gateway.services.clock.now
        reader, writer = await asyncio.open_connection(*told.address)
        writer.write(b"GET /ping HTTP/1.1\r\n")
        await has_received(gateway.services)
        gateway.services.clock.now = lambda: real() + 3600
        gateway._tick()
        gateway.services.clock.now = lambda: real() + 7200  # late again
        gateway._tick()

        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        await writer.wait_closed()

    run(tmp_path, scenario)
