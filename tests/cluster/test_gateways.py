"""The controller's side of the connections, with the gateway's own source and with raw sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from llama_gguf import __version__
from llama_gguf.cluster import gateways
from llama_gguf.cluster.gateways import GatewayServer
from llama_gguf.engines import roster
from llama_gguf.engines.cluster_source import ClusterSource
from llama_gguf.engines.roster import Demand, Hello
from llama_gguf.values import replace
from tests.cluster.test_controller import IDLE, Place
from tests.support.keys import BACKEND_KEY

HELLO = roster.to_line(Hello(__version__, BACKEND_KEY))


class Served(Place):
    """A controller that gateways can connect to."""

    def __init__(self) -> None:
        super().__init__()
        self.server = GatewayServer(lambda: self.controller, BACKEND_KEY)
        self.controller._on_roster = self.server.send_roster
        self.port = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    place = Served()
    await place.server.start("127.0.0.1", 0)
    assert place.server._server is not None
    place.port = place.server._server.sockets[0].getsockname()[1]
    place.step()
    try:
        async with asyncio.timeout(20):
            yield place
    finally:
        place.server.close()


async def until(fact: Callable[[], object]) -> None:
    while not fact():  # noqa: ASYNC110  # facts set no event
        await asyncio.sleep(0.01)


def test_a_gateway_follows_the_engines_and_its_requests_decide_on_them() -> None:
    async def run() -> None:
        async with served() as place:
            load = Demand(queued=1)
            peer = f"ray://127.0.0.1:{place.port}"
            source = ClusterSource(peer, BACKEND_KEY, load=lambda: load)
            following = asyncio.get_running_loop().create_task(source.follow())
            await until(lambda: place.controller.facts()["queued"] == 1)
            place.report(0)
            await until(lambda: [each.key for each in source.addresses] == ["10.0.0.0:8080"])
            load = Demand()
            await until(lambda: place.controller.facts()["queued"] == 0)
            place.step(IDLE)
            await until(lambda: not source.addresses)
            await until(lambda: place.step(0.0) == ["stop 0"])
            following.cancel()
            await asyncio.wait([following])
            await until(lambda: place.server.facts() == [])

    asyncio.run(run())


def test_who_does_not_know_the_key_gets_nothing_but_the_reason() -> None:
    async def run() -> None:
        async with served() as place:
            place.report(0)
            reader, writer = await place.connect()
            writer.write(roster.to_line(Hello(__version__, "wrong")))
            line = await reader.readline()
            assert await reader.read() == b""
            writer.close()
            with pytest.raises(roster.Refused, match="BACKEND_API_KEY"):
                roster.read_roster(line)
            assert b"10.0.0.0" not in line

    asyncio.run(run())


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"{}\n", b"x" * (1 << 18), b""])
def test_what_is_no_gateway_is_disconnected(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "HELLO_SECONDS", 0.05)

    async def run() -> None:
        async with served() as place:
            reader, writer = await place.connect()
            writer.write(first)
            with suppress(ConnectionResetError):  # it had more to read
                assert await reader.read() == b""
            writer.close()
            assert place.server.facts() == []

    asyncio.run(run())


def test_strangers_cannot_hold_more_than_a_bound_of_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateways, "MAX_STRANGERS", 1)

    async def run() -> None:
        async with served() as place:
            _, first = await place.connect()
            await until(lambda: place.server._strangers)
            reader, second = await place.connect()
            assert await reader.read() == b""
            first.write(HELLO)
            await until(place.server.facts)
            _, third = await place.connect()
            third.write(HELLO)
            await until(lambda: len(place.server.facts()) == 2)
            for writer in (first, second, third):
                writer.close()

    asyncio.run(run())


def test_a_gateway_that_reads_nothing_is_cut_and_its_demand_forgotten() -> None:
    async def run() -> None:
        async with served() as place:
            _, writer = await place.connect()
            writer.write(HELLO)
            await until(place.server.facts)
            address = "10.0.0.1:8080"
            place.controller.roster = replace(place.controller.roster, addresses=(address,) * 3000)
            while place.server.facts():
                place.server.send_roster()
                await asyncio.sleep(0)
            assert place.controller._demands == {}
            writer.close()

    asyncio.run(run())


def test_the_gateways_are_shown_with_their_versions() -> None:
    async def run() -> None:
        async with served() as place:
            _, writer = await place.connect()
            writer.write(roster.to_line(Hello("0.0.1", BACKEND_KEY)))
            await until(place.server.facts)
            assert place.server.facts() == [{"address": "127.0.0.1", "version": "0.0.1"}]
            writer.close()

    asyncio.run(run())
