"""Real sockets, with both loops and both pollers: all must keep the same promises."""

from __future__ import annotations

import asyncio
import socket
import weakref
from contextlib import closing, suppress
from typing import cast

import pytest

from llama_gguf.net.poller import EpollPoller, Poller
from llama_gguf.net.transport import HIGH_WATER_BYTES, READ_BYTES, LoopTransport, Transport
from tests.support.clients import reset
from tests.support.endpoints import (
    MUCH,
    End,
    NoDataExpected,
    Play,
    connected,
    read,
    sockets_of,
    turns,
)

# Reading and writing ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_what_is_written_on_one_side_arrives_on_the_other(family: int, play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller, family) as (end, peer):
            end.transport.write(b"to you")
            assert await read(peer, 6) == b"to you"
            peer.send(b"to us")
            await end.has(b"to us")

    play(scene)


def test_what_is_written_while_reading_arrives_in_its_order(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):

            def respond(data: bytes) -> None:
                for piece in (b"head ", b"body ", data):
                    end.transport.write(piece)

            end.on_data = respond
            peer.send(b"end")
            assert await read(peer, 13) == b"head body end"

    play(scene)


def test_what_is_written_now_does_not_wait_for_the_end_of_the_turn(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            got: list[bytes] = []

            def pass_on(data: bytes) -> None:
                end.transport.write_now(data)
                got.append(peer.recv(100))

            end.on_data = pass_on
            peer.send(b"an event")
            await end.has(b"an event")
            assert got == [b"an event"]

    play(scene)


def test_what_is_written_now_stays_behind_what_was_written_before(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):

            def respond(data: bytes) -> None:
                end.transport.write(b"head ")
                end.transport.write_now(data)
                end.transport.write(MUCH)
                end.transport.write_now(b"end")

            end.on_data = respond
            peer.send(b"body ")
            whole = b"head body " + MUCH + b"end"
            assert await read(peer, len(whole)) == whole

            end.transport.close()
            end.transport.write_now(b"more")
            assert await read(peer, 100) == b""

    play(scene)


def test_what_is_read_at_once_is_bounded_and_nothing_is_lost(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            sizes: list[int] = []
            end.on_data = lambda data: sizes.append(len(data))
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(peer, MUCH))
            await end.has(MUCH)
            await sending
            assert max(sizes) <= READ_BYTES

    play(scene)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_slow_reader_receives_everything_and_pauses_the_writer(family: int, play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller, family) as (end, peer):
            end.transport.write(MUCH)
            assert end.calls == ["pause"]
            assert end.transport.get_write_buffer_size() > HIGH_WATER_BYTES
            end.transport.write(b"behind it")
            assert end.calls == ["pause"]

            assert await read(peer, len(MUCH) + 9) == MUCH + b"behind it"
            assert end.calls == ["pause", "resume"]
            assert end.transport.get_write_buffer_size() == 0
            end.transport.write(b"again")
            assert await read(peer, 5) == b"again"

    play(scene)


def test_what_the_kernel_takes_nothing_of_is_kept(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            sock = end.transport.get_extra_info("socket")
            already = 0
            with suppress(BlockingIOError):
                while True:
                    already += sock.send(b"x" * 1000)
            end.transport.write(b"behind it")
            assert (await read(peer, already + 9)).endswith(b"xbehind it")

    play(scene)


def test_its_high_water_mark_can_be_set(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, _):
            end.transport.set_write_buffer_limits(high=10 * len(MUCH))
            end.transport.write(MUCH)
            assert end.calls == []

    play(scene)


def test_nothing_is_read_while_reading_is_paused(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.pause_reading()
            end.transport.pause_reading()
            peer.send(b"wait")
            end.transport.write(b"writing goes on")
            assert await read(peer, 15) == b"writing goes on"
            await turns()
            assert end.received == b""
            end.transport.resume_reading()
            end.transport.resume_reading()
            await end.has(b"wait")

    play(scene)


def test_its_socket_and_its_peer_are_known(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            assert end.transport.get_extra_info("peername") == ("203.0.113.9", 40000)
            assert end.transport.get_extra_info("socket").getsockname() == peer.getpeername()
            assert end.transport.get_extra_info("sslcontext") is None

    play(scene)


# The end ------------------------------------------------------------------------------------------


def test_a_peer_that_closes_ends_the_connection(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            peer.send(b"last words")
            peer.close()
            assert await end.lost is None
            assert end.received == b"last words"
            assert end.calls == ["eof"]
            assert end.transport.is_closing()

    play(scene)


def test_a_peer_that_resets_the_connection_is_an_error(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            reset(peer)
            assert isinstance(await end.lost, ConnectionResetError)
            assert end.calls == []

    play(scene)


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_peer_that_is_gone_is_noticed_by_writing(how: int, play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller, socket.AF_UNIX) as (end, peer):
            end.transport.pause_reading()
            peer.shutdown(how)
            peer.close()
            end.transport.write(b"nobody reads this")
            end.transport.write(b"nor this")
            assert isinstance(await end.lost, BrokenPipeError)

    play(scene)


def test_a_peer_that_goes_in_the_middle_is_noticed(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.pause_reading()
            end.transport.write(MUCH)
            reset(peer)
            assert isinstance(await end.lost, ConnectionError)

    play(scene)


def test_closing_waits_until_all_is_sent(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.write(MUCH)
            end.transport.close()
            end.transport.write(b"too late")
            assert end.transport.is_closing()
            assert not end.lost.done()
            assert await read(peer, len(MUCH) + 1) == MUCH
            assert await end.lost is None

    play(scene)


def test_what_is_written_before_a_close_in_the_same_turn_is_sent(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):

            def answer_and_close(data: bytes) -> None:
                end.transport.write(b"goodbye " + data)
                end.transport.close()
                end.transport.close()
                assert not end.lost.done()

            end.on_data = answer_and_close
            peer.send(b"now")
            assert await read(peer, 100) == b"goodbye now"
            assert await end.lost is None

    play(scene)


def test_nothing_is_read_any_more_once_it_is_closing(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.write(MUCH)
            end.transport.close()
            end.transport.resume_reading()
            peer.send(b"hello?")
            await turns()
            assert end.received == b""

    play(scene)


def test_aborting_waits_for_nothing(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.write(MUCH)
            end.transport.abort()
            assert await end.lost is None
            assert len(await read(peer, len(MUCH))) < len(MUCH)

    play(scene)


def test_what_an_abort_in_the_same_turn_takes_back_is_not_sent(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):

            def answer_and_cut(data: bytes) -> None:
                end.transport.write(data)
                end.transport.abort()

            end.on_data = answer_and_cut
            peer.send(b"hello")
            await end.lost
            sent = b"" if isinstance(poller, EpollPoller) else b"hello"
            assert await read(peer, 10) == sent

    play(scene)


def test_the_end_is_reported_once_and_never_from_within_the_call(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, _):
            end.transport.close()
            end.transport.close()
            end.transport.abort()
            assert not end.lost.done()
            await end.lost
            end.transport.abort()
            await turns()

    play(scene)


def test_closing_our_half_leaves_the_other_open(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            assert end.transport.can_write_eof()
            end.transport.write(MUCH)
            end.transport.write_eof()
            assert await read(peer, len(MUCH) + 1) == MUCH
            peer.send(b"still there")
            await end.has(b"still there")

    play(scene)


def test_closing_our_half_comes_behind_what_was_written_in_the_same_turn(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):

            def answer_and_close_half(data: bytes) -> None:
                end.transport.write(data)
                assert not end.transport.is_closing()
                end.transport.write_eof()

            end.on_data = answer_and_close_half
            peer.send(b"hello")
            assert await read(peer, 10) == b"hello"
            peer.send(b"!")
            await end.has(b"hello!")

    play(scene)


def test_closing_our_half_of_what_was_reset_ends_it(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.pause_reading()
            reset(peer)
            end.transport.write_eof()
            assert isinstance(await end.lost, OSError)

    play(scene)


# A transport of the loop --------------------------------------------------------------------------


def test_a_transport_of_the_loop_serves_the_same_protocols(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        del poller
        ours, peer = sockets_of(socket.AF_INET)
        ours.setblocking(False)
        peer.setblocking(False)
        end = End()
        adapter = cast("asyncio.Protocol", LoopTransport(end))
        with closing(peer):
            await asyncio.get_running_loop().connect_accepted_socket(lambda: adapter, ours)
            transport = end.transport
            assert transport.get_extra_info("peername") == peer.getsockname()
            assert transport.can_write_eof()
            transport.write(b"to ")
            transport.write_now(b"you")
            assert await read(peer, 6) == b"to you"

            transport.pause_reading()
            peer.send(b"to us")
            await turns()
            assert end.received == b""
            transport.resume_reading()
            await end.has(b"to us")

            transport.set_write_buffer_limits(high=1)
            transport.write(MUCH)
            assert end.calls == ["pause"]
            assert transport.get_write_buffer_size() > 1
            transport.write_eof()
            assert await read(peer, len(MUCH) + 1) == MUCH
            assert end.calls == ["pause", "resume"]

            assert not transport.is_closing()
            transport.close()
            assert transport.is_closing()
            assert await end.lost is None

    play(scene)


class _Loops:
    """A transport of a loop, as far as it is called here."""

    def set_protocol(self, protocol: object) -> None:
        pass


def test_a_closed_tls_connection_is_freed_without_the_garbage_collector() -> None:
    class Keeper(NoDataExpected):
        def connection_made(self, transport: Transport) -> None:
            self.transport = transport

        def connection_lost(self, exc: Exception | None) -> None:
            pass

    keeper = Keeper()
    LoopTransport(keeper).connection_made(_Loops())
    remembered = weakref.ref(keeper)

    del keeper

    assert remembered() is None
