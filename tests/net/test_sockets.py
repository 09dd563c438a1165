"""Real sockets on loopback: each kind of transport returns another object for its socket."""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import pytest
import uvloop

from llama_gguf.net import sockets
from llama_gguf.net.poller import poller
from llama_gguf.net.transport import LoopTransport, SocketTransport, Transport
from tests.support.clients import reset
from tests.support.endpoints import NoDataExpected
from tests.support.processes import DEADLINE_SECONDS

Pair = tuple[socket.socket, socket.socket]


@contextmanager
def tcp() -> Iterator[Pair]:
    """Ours and the peer's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=DEADLINE_SECONDS) as peer,
    ):
        ours, _ = listener.accept()
        with closing(ours):
            yield ours, peer


@contextmanager
def unix() -> Iterator[Pair]:
    ours, peer = socket.socketpair()
    peer.settimeout(DEADLINE_SECONDS)
    with closing(ours), closing(peer):
        yield ours, peer


class Line(NoDataExpected):
    """A connection that knows its transport and when it is lost."""

    def __init__(self) -> None:
        self.transport: Transport
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set_result(None)


Act = Callable[[Transport], None]


Attach = Callable[[socket.socket], Awaitable[Line]]


async def to_the_loop_s(ours: socket.socket) -> Line:
    line = Line()
    adapter = cast("asyncio.Protocol", LoopTransport(line))
    await asyncio.get_running_loop().connect_accepted_socket(lambda: adapter, ours)
    return line


async def to_our_own(ours: socket.socket) -> Line:
    line = Line()
    SocketTransport(poller(asyncio.get_running_loop()), ours, "peer").attach(line)
    return line


@dataclass(frozen=True)
class Run:
    """Runs scenes on one loop, with one kind of transport."""

    on_loop: Callable[[Coroutine[Any, Any, None]], None]
    attach: Attach

    async def connected(self, ours: socket.socket) -> Line:
        """A connection that reads nothing, as that of a client that has sent too much ahead."""
        ours.setblocking(False)
        line = await self.attach(ours.dup())
        line.transport.pause_reading()
        return line


KINDS: Final = {
    "asyncio": (asyncio.new_event_loop, to_the_loop_s),
    "uvloop": (uvloop.new_event_loop, to_the_loop_s),
    "ours": (uvloop.new_event_loop, to_our_own),
}


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    new_loop, attach = KINDS[request.param]
    with asyncio.Runner(loop_factory=new_loop) as runner:
        yield Run(runner.run, attach)


def after(act: Act, ours: socket.socket, run: Run) -> None:
    """Have *act* end the connection of *ours*."""

    async def work() -> None:
        line = await run.connected(ours)
        ours.close()  # the transport has its own
        act(line.transport)
        await asyncio.wait_for(line.lost, DEADLINE_SECONDS)

    run.on_loop(work())


def send_request(ours: socket.socket, run: Run) -> bool:
    """The result of ``has_left`` for *ours*."""
    responses = []

    async def work() -> None:
        line = await run.connected(ours)
        responses.append(sockets.has_left(line.transport))
        line.transport.abort()
        await asyncio.wait_for(line.lost, DEADLINE_SECONDS)

    run.on_loop(work())
    return responses[0]


def wait_for_end(ours: socket.socket) -> None:
    """Until the kernel has got the peer's end; nothing is read."""
    poll = select.poll()
    poll.register(ours, select.POLLRDHUP)
    assert poll.poll(DEADLINE_SECONDS * 1000)


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(100):
        pass


# Cutting ------------------------------------------------------------------------------------------


def test_a_reset_is_no_clean_end(run: Run) -> None:
    with tcp() as (ours, peer):
        after(sockets.reset, ours, run)

        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_without_it_a_cut_looks_like_a_clean_end(run: Run) -> None:
    with tcp() as (ours, peer):
        after(lambda transport: transport.abort(), ours, run)

        assert peer.recv(1) == b""


def test_a_reset_comes_instead_of_the_end_of_what_was_written(run: Run) -> None:
    def write_and_reset(transport: Transport) -> None:
        transport.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
        sockets.reset(transport)

    with tcp() as (ours, peer):
        after(write_and_reset, ours, run)

        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


def test_on_a_unix_socket_a_reset_is_an_end(run: Run) -> None:
    with unix() as (ours, peer):
        after(sockets.reset, ours, run)

        assert peer.recv(1) == b""


class Unused(NoDataExpected):
    def connection_made(self, transport: Transport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class Sockless(asyncio.Transport):
    """A transport of a loop with a given socket, or none."""

    def __init__(self, sock: object) -> None:
        super().__init__({"socket": sock})
        self.aborted = False

    def set_protocol(self, protocol: object) -> None:
        pass

    def wrapped(self) -> Transport:
        transport = LoopTransport(Unused())
        transport.connection_made(self)
        return transport

    def abort(self) -> None:
        self.aborted = True


def test_a_connection_without_a_socket_is_cut_all_the_same() -> None:
    transport = Sockless(None)
    sockets.reset(transport.wrapped())

    assert transport.aborted
    assert not sockets.has_left(transport.wrapped())


def test_a_connection_whose_socket_is_closed_is_cut_all_the_same() -> None:
    with tcp() as (ours, _):
        transport = Sockless(ours)
        ours.close()
        sockets.reset(transport.wrapped())

        assert transport.aborted
        assert not sockets.has_left(transport.wrapped())


# Has it left? -------------------------------------------------------------------------------------


def test_a_peer_that_is_there_has_not_left(run: Run) -> None:
    with tcp() as (ours, peer):
        peer.sendall(b"not read")

        assert not send_request(ours, run)


def test_a_peer_that_closed_has_left_though_what_it_sent_is_not_read(run: Run) -> None:
    with tcp() as (ours, peer):
        peer.sendall(b"not read")
        peer.close()
        wait_for_end(ours)

        assert send_request(ours, run)


def test_a_peer_that_closed_its_half_has_left(run: Run) -> None:
    with tcp() as (ours, peer):
        peer.shutdown(socket.SHUT_WR)
        wait_for_end(ours)

        assert send_request(ours, run)


def test_a_peer_that_reset_has_left(run: Run) -> None:
    with tcp() as (ours, peer):
        reset(peer)
        wait_for_end(ours)

        assert send_request(ours, run)


@pytest.mark.parametrize("closes", [False, True])
def test_of_a_unix_socket_the_state_is_unknown(closes: bool, run: Run) -> None:
    with unix() as (ours, peer):
        if closes:
            peer.close()

        assert not send_request(ours, run)


# Limits -------------------------------------------------------------------------------------------

REPORT: Final = """
import resource, sys
from llama_gguf.net.sockets import places_within_limits
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
places = places_within_limits(wanted)
print(places.served, places.open, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "served", "most_open"),
    [
        (100, 1000, 400, 400, 450),
        (1000, 1000, 400, 400, 450),
        (100, 264, 400, 94, 105),
        (40, 40, 400, 1, 2),
    ],
)
def test_there_are_files_for_two_connections_a_client_and_for_those_that_are_refused(
    soft: int, hard: int, wanted: int, served: int, most_open: int
) -> None:
    argv = [sys.executable, "-c", REPORT, str(soft), str(hard), str(wanted)]
    told = subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=DEADLINE_SECONDS
    )

    assert told.stdout.split() == [str(served), str(most_open), str(hard)]
