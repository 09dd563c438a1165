"""A gateway's side of the connection, with a controller that the test plays on a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llama_gguf import __version__
from llama_gguf.engines import cluster_source, roster
from llama_gguf.engines.cluster_source import ClusterSource
from llama_gguf.engines.roster import Demand, Roster
from llama_gguf.engines.status import ChildState
from tests.support.keys import BACKEND_KEY

A, B = "10.0.0.1:8080", "10.0.0.2:8080"
LOADING = Roster(1, (), ChildState.LOADING, "10 %", 0.1, "m", __version__)


class Play:
    """The controller at one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def demand(self) -> Demand:
        return roster.read_demand(await self.reader.readline())

    def have(self, revision: int, *addresses: str) -> None:
        state = ChildState.READY
        self.writer.write(roster.to_line(Roster(revision, addresses, state, version=__version__)))


@asynccontextmanager
async def played(
    play: Callable[[Play], Awaitable[None]], load: Callable[[], Demand] = Demand
) -> AsyncIterator[ClusterSource]:
    """A source whose first connection is *play*; it is refused afterwards."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        hello = roster.read_hello(await reader.readline())
        assert (hello.key, hello.version) == (BACKEND_KEY, __version__)
        try:
            await play(Play(reader, writer))
        finally:
            over.set_result(None)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    source = ClusterSource(f"ray://127.0.0.1:{port}", BACKEND_KEY, load=load)
    following = asyncio.get_running_loop().create_task(source.follow())
    try:
        async with asyncio.timeout(20):
            yield source
            await over
    finally:
        following.cancel()
        await asyncio.wait([following])


async def changed(source: ClusterSource) -> None:
    """Wait for the next change."""
    event = asyncio.Event()
    source.on_change = event.set
    await event.wait()


def keys(source: ClusterSource) -> list[str]:
    return [address.key for address in source.addresses]


def test_engines_come_and_go_as_the_controller_lists_them() -> None:
    async def play(controller: Play) -> None:
        controller.have(1, A)
        while (await controller.demand()).revision < 1:
            pass
        controller.have(2, A, B)
        while (await controller.demand()).revision < 2:
            pass

    async def run() -> None:
        async with played(play) as source:
            await changed(source)
            first = keys(source), source.absence
            await changed(source)
            assert (first, keys(source)) == (([A], None), [A, B])
            assert {address.api_key for address in source.addresses} == {BACKEND_KEY}

    asyncio.run(run())


def test_the_controller_gets_each_change_of_the_demand() -> None:
    load = Demand()
    seen: list[tuple[int, object]] = []

    async def play(controller: Play) -> None:
        nonlocal load
        controller.have(1, A)
        for each in (Demand(queued=2), Demand(running={A: 1}), Demand()):
            load = each
            while seen[-1:] != [(each.queued, each.running)]:
                found = await controller.demand()
                seen.append((found.queued, found.running))

    async def run() -> None:
        async with played(play, lambda: load):
            pass

    asyncio.run(run())
    assert (2, {}) in seen
    assert (0, {A: 1}) in seen


def test_a_request_that_does_not_wait_wakes_an_engine_once() -> None:
    seen: list[int] = []

    async def play(controller: Play) -> None:
        while seen[-2:] != [1, 0]:
            seen.append((await controller.demand()).queued)

    async def run() -> None:
        async with played(play) as source:
            source.wake()

    asyncio.run(run())
    assert seen.count(1) == 1


def test_without_an_engine_the_reason_is_what_the_controller_reports() -> None:
    async def play(controller: Play) -> None:
        controller.writer.write(roster.to_line(LOADING))
        await controller.demand()

    async def run() -> None:
        async with played(play) as source:
            await changed(source)
            assert source.absence == LOADING

    asyncio.run(run())


def test_the_last_engines_stay_in_use_while_the_controller_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play(controller: Play) -> None:
        controller.have(1, A)

    async def run() -> None:
        async with played(play) as source:
            await changed(source)
            while not caplog.records:  # noqa: ASYNC110  # no event is set for a log record
                await asyncio.sleep(0)
            assert keys(source) == [A]

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert "it has closed the connection; its last 1 addresses stay in use" in caplog.text


def lost(peer: str) -> str:
    """The reason that people see, with a *peer* that is no controller."""

    async def run() -> str:
        source = ClusterSource(peer, BACKEND_KEY)
        following = asyncio.get_running_loop().create_task(source.follow())
        async with asyncio.timeout(20):
            await changed(source)
        following.cancel()
        await asyncio.wait([following])
        assert source.absence is not None
        assert source.absence.state is ChildState.UNREACHABLE
        return source.absence.detail

    return asyncio.run(run())


def detail_after(response: bytes) -> str:
    """The same, with what sends *response*."""

    async def run() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(response)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.to_thread(lost, f"ray://127.0.0.1:{port}")

    return asyncio.run(run())


def test_a_refusal_is_shown_with_its_reason() -> None:
    assert detail_after(roster.refusal("another key")).endswith(": another key")


@pytest.mark.parametrize(
    "response", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{}\n", b"x" * (1 << 18)]
)
def test_what_is_no_controller_is_not_taken_for_one(response: bytes) -> None:
    assert detail_after(response).endswith("what responds there is no controller of llama-gguf")


@pytest.mark.parametrize("port", [6379, 8265, 10001])
def test_a_port_of_ray_is_explained(port: int) -> None:
    async def refuse(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise ConnectionRefusedError(111, "Connection refused")

    async def run() -> str:
        source = ClusterSource(f"ray://127.0.0.1:{port}", "", connect=refuse)
        following = asyncio.get_running_loop().create_task(source.follow())
        await changed(source)
        following.cancel()
        await asyncio.wait([following])
        assert source.absence is not None
        return source.absence.detail

    assert f"{port} is a port of Ray" in asyncio.run(run())


def test_without_a_host_it_is_the_head_of_this_machines_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "head").write_text("10.0.0.9:6379")
    asked = []

    async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        asked.append((host, port))
        raise ConnectionRefusedError(111, "Connection refused")

    async def run(head_file: Path) -> str:
        monkeypatch.setattr(cluster_source, "HEAD_FILE", str(head_file))
        source = ClusterSource("ray://", "", connect=connect)
        following = asyncio.get_running_loop().create_task(source.follow())
        await changed(source)
        following.cancel()
        await asyncio.wait([following])
        assert source.absence is not None
        return source.absence.detail

    asyncio.run(run(tmp_path / "head"))
    assert asked == [("10.0.0.9", roster.DEFAULT_PORT)]
    assert "belongs to no Ray cluster" in asyncio.run(run(tmp_path / "missing"))


def test_another_version_of_the_cluster_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def play(controller: Play) -> None:
        other = Roster(1, (A,), ChildState.READY, version="0.0.1")
        controller.writer.write(roster.to_line(other))
        await controller.demand()

    async def run() -> None:
        async with played(play) as source:
            await changed(source)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert f"has llama-gguf 0.0.1, and this gateway is {__version__}" in caplog.text
