"""Endpoints of our transports on real sockets, with each poller and event loop.

For tests of ``llama_gguf.net`` and what is built directly on it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Final

import pytest
import uvloop

from llama_gguf.net.event_loop import TrafficLoop
from llama_gguf.net.poller import EpollPoller, LoopPoller, Poller, poller
from llama_gguf.net.transport import SocketTransport, Transport
from tests.support.processes import DEADLINE_SECONDS

MUCH: Final = bytes(range(256)) * 20_000
"""More than the kernel buffers for a peer that does not read."""


class NoDataExpected:
    """Part of an endpoint that must not receive anything."""

    def data_received(self, data: bytes) -> None:
        raise AssertionError(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class End:
    """An endpoint that records its calls."""

    def __init__(self) -> None:
        self.transport: Transport
        self.received = b""
        self.calls: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.on_data: Callable[[bytes], None] = lambda _: None
        self._news = asyncio.Event()

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()
        self.on_data(data)

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return False

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    async def has(self, data: bytes) -> None:
        """Wait until it has received *data*, and nothing else."""
        while self.received != data:
            self._news.clear()
            assert data.startswith(self.received)
            await self._news.wait()


Scene = Callable[[Poller], Awaitable[None]]
Play = Callable[[Scene], None]
NewPoller = Callable[[asyncio.AbstractEventLoop], Poller]


async def watched(scene: Scene, new_poller: NewPoller = poller) -> None:
    """Run *scene* with a poller of the running loop."""
    with closing(new_poller(asyncio.get_running_loop())) as watcher:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await scene(watcher)


def sockets_of(family: int) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), timeout=DEADLINE_SECONDS)
        return listener.accept()[0], peer


@asynccontextmanager
async def connected(
    poller: Poller, family: int = socket.AF_INET
) -> AsyncIterator[tuple[End, socket.socket]]:
    """One end, and the peer's socket, which does not block."""
    ours, peer = sockets_of(family)
    ours.setblocking(False)
    peer.setblocking(False)
    end = End()
    SocketTransport(poller, ours, ("203.0.113.9", 40000)).attach(end)
    with closing(peer):
        try:
            yield end, peer
        finally:
            end.transport.abort()
            await end.lost


async def read(peer: socket.socket, size: int) -> bytes:
    """*size* bytes, or fewer if the connection ends before."""
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(peer, size - len(data))
        if not more:
            break
        data += more
    return data


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


Way = tuple[NewPoller, Callable[[], asyncio.AbstractEventLoop]]
WAYS: Final[dict[str, Way]] = {
    "within": (poller, TrafficLoop),
    **{
        f"{kind.__name__}-{name}": (kind, new_loop)
        for kind in (EpollPoller, LoopPoller)
        for name, new_loop in (
            ("asyncio", asyncio.new_event_loop),
            ("uvloop", uvloop.new_event_loop),
        )
    },
}
"""Each poller with each event loop that it can be used in."""


@pytest.fixture(params=WAYS)
def play(request: pytest.FixtureRequest) -> Play:
    """Runs a scene, once in each of ``WAYS``."""
    new_poller, new_loop = WAYS[request.param]

    def run(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(watched(scene, new_poller))

    return run
