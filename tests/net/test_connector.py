"""Real connections on this machine, made and failed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.schema import UpstreamSettings
from llama_gguf.net.connector import RETRY_SECONDS, Cancellable, Dialer
from llama_gguf.net.poller import Poller
from llama_gguf.net.transport import Transport
from tests.support.endpoints import NoDataExpected, Play, watched


class End(NoDataExpected):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[Transport] = loop.create_future()
        self.failed: asyncio.Future[OSError] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: Transport) -> None:
        self.made.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set_result(None)


class Phone:
    """Dials, and keeps the result."""

    def __init__(self, watcher: Poller, **settings: Any) -> None:
        upstream = UpstreamSettings(**settings)
        self._dialer = Dialer(
            watcher, upstream.backend_host, upstream.port_backend, upstream.backend_socket
        )
        self.end = End()
        self.waits_for: Cancellable | None = None

    def dial(self) -> Phone:
        self.waits_for = self._dialer.dial(self.end, self.end.failed.set_result)
        return self

    async def close(self) -> None:
        (await self.end.made).abort()
        await self.end.lost


@asynccontextmanager
async def calling(watcher: Poller, **settings: Any) -> AsyncIterator[Phone]:
    phone = Phone(watcher, **settings).dial()
    yield phone
    await phone.close()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_an_address_of_this_machine_is_connected_to_at_once(
    host: str, family: socket.AddressFamily, play: Play
) -> None:
    async def scene(watcher: Poller) -> None:
        with socket.create_server((host, 0), family=family) as engine:
            port = engine.getsockname()[1]
            async with calling(watcher, backend_host=host, port_backend=port) as phone:
                assert phone.waits_for is None
                assert phone.end.made.result().get_extra_info("peername")[:2] == (host, port)
                sock = phone.end.made.result().get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    play(scene)


def test_a_socket_file_is_connected_to_at_once(play: Play, tmp_path: Path) -> None:
    path = str(tmp_path / "llama.sock")

    async def scene(watcher: Poller) -> None:
        with closing(socket.socket(socket.AF_UNIX)) as engine:
            engine.bind(path)
            engine.listen()
            async with calling(watcher, backend_socket=path) as phone:
                assert phone.waits_for is None
                assert phone.end.made.done()

    play(scene)


def test_a_name_is_looked_up(play: Play) -> None:
    async def scene(watcher: Poller) -> None:
        with socket.create_server(("127.0.0.1", 0)) as engine:
            port = engine.getsockname()[1]
            async with calling(watcher, backend_host="localhost", port_backend=port) as phone:
                assert phone.waits_for is not None
                transport = await phone.end.made
                assert transport.get_extra_info("peername")[:2] == ("127.0.0.1", port)

    play(scene)


def test_of_several_addresses_the_first_that_accepts_is_taken() -> None:
    async def scene(watcher: Poller) -> None:
        refusing = unused_port()
        with socket.create_server(("127.0.0.1", 0)) as engine:
            port = engine.getsockname()[1]

            async def find(host: str, _: int, *, type: int) -> list[Any]:
                assert (host, type) == ("engine.internal", socket.SOCK_STREAM)
                addresses = [("127.0.0.1", refusing), ("127.0.0.1", port)]
                return [(socket.AF_INET, type, 6, "", address) for address in addresses]

            watcher.loop.getaddrinfo = find  # type: ignore[assignment, method-assign]
            async with calling(watcher, backend_host="engine.internal") as phone:
                transport = await phone.end.made
                assert transport.get_extra_info("peername") == ("127.0.0.1", port)
                assert not phone.end.failed.done()

    with asyncio.Runner() as runner:
        runner.run(watched(scene))


def test_a_name_without_an_address_is_an_error() -> None:
    async def scene(watcher: Poller) -> None:
        async def find(*_: Any, **__: Any) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        watcher.loop.getaddrinfo = find  # type: ignore[method-assign]
        phone = Phone(watcher, backend_host="engine.invalid").dial()
        assert isinstance(await phone.end.failed, socket.gaierror)

    with asyncio.Runner() as runner:
        runner.run(watched(scene))


def test_a_refusal_is_reported_but_not_from_within_the_call(play: Play) -> None:
    async def scene(watcher: Poller) -> None:
        phone = Phone(watcher, port_backend=unused_port()).dial()
        assert not phone.end.failed.done()
        assert isinstance(await phone.end.failed, ConnectionRefusedError)

    play(scene)


def test_a_missing_socket_file_is_an_error(play: Play, tmp_path: Path) -> None:
    async def scene(watcher: Poller) -> None:
        phone = Phone(watcher, backend_socket=str(tmp_path / "none.sock")).dial()
        assert isinstance(await phone.end.failed, FileNotFoundError)

    play(scene)


def test_a_cancelled_attempt_reports_nothing(play: Play) -> None:
    async def scene(watcher: Poller) -> None:
        phones = [
            Phone(watcher, port_backend=unused_port()).dial(),
            Phone(watcher, backend_host="localhost", port_backend=unused_port()).dial(),
        ]
        for phone in phones:
            assert phone.waits_for is not None
            phone.waits_for.cancel()
        # A later failure is reported after those that were cancelled would have been.
        await Phone(watcher, backend_host="localhost", port_backend=unused_port()).dial().end.failed
        assert not any(phone.end.failed.done() or phone.end.made.done() for phone in phones)

    play(scene)


@pytest.mark.slow
def test_an_engine_with_a_full_backlog_is_waited_for(play: Play) -> None:
    async def scene(watcher: Poller) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as engine:
            port = engine.getsockname()[1]
            phones = [Phone(watcher, port_backend=port).dial()]
            while phones[-1].waits_for is None:
                phones.append(Phone(watcher, port_backend=port).dial())
            given_up = Phone(watcher, port_backend=port).dial()
            assert given_up.waits_for is not None
            given_up.waits_for.cancel()

            accepted = [engine.accept()[0] for _ in phones[:-1]]  # the kernel tries again in 1 s
            await phones[-1].end.made
            for phone in phones:
                await phone.close()
            assert not given_up.end.made.done()
            for sock in accepted:
                sock.close()

    play(scene)


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="this is Linux's own")
def test_an_event_is_not_acknowledged_by_a_packet_of_its_own(play: Play) -> None:
    async def scene(watcher: Poller) -> None:
        with socket.create_server(("127.0.0.1", 0)) as engine:
            async with calling(watcher, port_backend=engine.getsockname()[1]) as phone:
                sock = phone.end.made.result().get_extra_info("socket")
                assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)

    play(scene)


@contextmanager
def full_queue(path: str) -> Iterator[socket.socket]:
    """A socket file that listens, and whose queue another connection fills."""
    with (
        closing(socket.socket(socket.AF_UNIX)) as engine,
        closing(socket.socket(socket.AF_UNIX)) as other,
    ):
        engine.bind(path)
        engine.listen(0)
        other.connect(path)
        yield engine


def test_a_socket_file_whose_queue_is_full_is_tried_until_there_is_room(
    play: Play, tmp_path: Path
) -> None:
    path = str(tmp_path / "llama.sock")

    async def scene(watcher: Poller) -> None:
        with full_queue(path) as engine:
            phone = Phone(watcher, backend_socket=path).dial()
            assert phone.waits_for is not None
            for _ in range(3):  # what would have failed has failed by then
                await asyncio.sleep(0)
            assert not phone.end.failed.done()
            engine.accept()[0].close()
            await phone.close()

    play(scene)


def test_a_socket_file_whose_queue_is_full_can_be_given_up(play: Play, tmp_path: Path) -> None:
    path = str(tmp_path / "llama.sock")

    async def scene(watcher: Poller) -> None:
        with full_queue(path) as engine:
            phone = Phone(watcher, backend_socket=path).dial()
            assert phone.waits_for is not None
            phone.waits_for.cancel()
            await asyncio.sleep(2 * RETRY_SECONDS)
            engine.accept()[0].close()
            assert not phone.end.made.done()
            assert not phone.end.failed.done()

    play(scene)
