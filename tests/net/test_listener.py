from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, cast

import pytest

from llama_gguf.net.binding import listen
from llama_gguf.net.listener import Listener
from llama_gguf.net.poller import EpollPoller, Poller
from llama_gguf.net.transport import SocketTransport, Transport
from tests.support.endpoints import NoDataExpected, watched

# Letting in ---------------------------------------------------------------------------------------


class Guest(NoDataExpected):
    """Sends hello to each client."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall

    def connection_made(self, transport: Transport) -> None:
        self._hall.transports.append(transport)
        transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._hall.gone.release()


class Hall:
    def __init__(self) -> None:
        self.transports: list[Transport] = []
        self.gone = asyncio.Semaphore(0)
        self.room = 1000


class NoFiles:
    """A listening socket on which accepting fails *how_often* times before it works."""

    def __init__(self, sock: socket.socket, how_often: int, number: int) -> None:
        self._sock = sock
        self._left = how_often
        self._number = number

    def _accept(self) -> tuple[int, Any]:
        if self._left:
            self._left -= 1
            raise OSError(self._number, "not now")
        return self._sock._accept()  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


Scene = Callable[[Hall, socket.socket], Awaitable[None]]


def play(scene: Scene, disguise: Callable[[socket.socket], object] = lambda sock: sock) -> None:
    async def within(watcher: Poller) -> None:
        hall = Hall()
        sock = listen("127.0.0.1", 0)
        disguised = cast("socket.socket", disguise(sock))

        def let_in(accepted: socket.SocketType, peer: object) -> None:
            SocketTransport(watcher, accepted, peer).attach(Guest(hall))

        listener = Listener(watcher, disguised, let_in, lambda: len(hall.transports) < hall.room)
        await scene(hall, sock)
        listener.close()
        assert sock.fileno() == -1
        for transport in hall.transports:
            transport.abort()
            await hall.gone.acquire()

    asyncio.run(watched(within))


async def visit(sock: socket.socket) -> bytes:
    """What a new client receives before its connection ends, or once it is accepted."""
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    heard = await reader.read(5)
    writer.close()
    return heard


def test_every_client_is_accepted() -> None:
    async def scene(hall: Hall, sock: socket.socket) -> None:
        heard = await asyncio.gather(*(visit(sock) for _ in range(100)))
        assert heard == [b"hello"] * 100
        peers = {transport.get_extra_info("peername")[0] for transport in hall.transports}
        assert peers == {"127.0.0.1"}

    play(scene)


def test_an_accepted_socket_neither_blocks_nor_delays_small_writes() -> None:
    async def scene(hall: Hall, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await reader.read(5) == b"hello"
        ours = hall.transports[0].get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not ours.getblocking()
        writer.close()

    play(scene)


def test_a_client_is_closed_not_left_waiting_while_no_file_can_be_opened() -> None:
    async def scene(hall: Hall, sock: socket.socket) -> None:
        assert await visit(sock) == b""
        assert await visit(sock) == b"hello"

    play(scene, lambda sock: NoFiles(sock, 1, errno.EMFILE))


def test_without_a_spare_file_accepting_pauses() -> None:
    async def scene(hall: Hall, sock: socket.socket) -> None:
        assert await visit(sock) == b"hello"

    play(scene, lambda sock: NoFiles(sock, 2, errno.ENFILE))


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_client_that_left_before_it_was_accepted_is_ignored(number: int) -> None:
    async def scene(hall: Hall, sock: socket.socket) -> None:
        assert await visit(sock) == b"hello"

    play(scene, lambda sock: NoFiles(sock, 1, number))


def test_a_client_beyond_the_limit_is_closed_unread() -> None:
    async def scene(hall: Hall, sock: socket.socket) -> None:
        hall.room = 1
        assert await visit(sock) == b"hello"
        assert await visit(sock) == b""
        hall.room = 2
        assert await visit(sock) == b"hello"

    play(scene)


def test_a_closed_listener_accepts_no_client() -> None:
    """Another process, such as the supervisor, may still have the socket."""

    async def scene() -> None:
        with closing(EpollPoller(asyncio.get_running_loop())) as watcher:
            sock = listen("127.0.0.1", 0)
            with closing(sock.dup()) as inherited:
                Listener(watcher, sock, lambda *_: None, lambda: True).close()
                with socket.create_connection(inherited.getsockname()):
                    assert select.select([watcher.fileno()], [], [], 0)[0] == []

    asyncio.run(scene())
