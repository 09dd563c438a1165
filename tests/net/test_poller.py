from __future__ import annotations

import asyncio
import logging
import select

import pytest

from llama_gguf.net.poller import EpollPoller, LoopPoller, Poller, poller
from tests.support.clients import reset
from tests.support.endpoints import MUCH, End, Play, connected, turns


def test_epoll_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        assert isinstance(poller(loop), EpollPoller)
        monkeypatch.delattr(select, "epoll")
        assert isinstance(poller(loop), LoopPoller)


def test_a_connection_closed_by_another_in_the_same_turn_is_not_called_again(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (one, its_peer), connected(poller) as (other, others_peer):
            one.on_data = lambda _: other.transport.abort()
            other.on_data = lambda _: one.transport.abort()
            its_peer.send(b"x")
            others_peer.send(b"x")
            await asyncio.wait([one.lost, other.lost], return_when=asyncio.FIRST_COMPLETED)
            assert sorted([one.received, other.received]) == [b"", b"x"]

    play(scene)


def test_a_connection_paused_by_another_in_the_same_turn_is_not_called_again(play: Play) -> None:
    async def scene(poller: Poller) -> None:
        async with connected(poller) as (one, its_peer), connected(poller) as (other, others_peer):
            heard = asyncio.Event()

            def pause(who: End) -> None:
                who.transport.pause_reading()
                heard.set()

            one.on_data = lambda _: pause(other)
            other.on_data = lambda _: pause(one)
            for end in (one, other):
                end.transport.write(MUCH)  # so that it is watched all the same
            its_peer.send(b"x")
            others_peer.send(b"x")
            await heard.wait()
            await turns()
            assert sorted([one.received, other.received]) == [b"", b"x"]

    play(scene)


def test_a_bug_in_one_is_logged_and_leaves_the_others_alone(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError(data)

    async def scene(poller: Poller) -> None:
        async with connected(poller) as (one, its_peer), connected(poller) as (other, others_peer):
            one.on_data = fail
            its_peer.send(b"x")
            assert isinstance(await one.lost, ZeroDivisionError)
            others_peer.send(b"y")
            await other.has(b"y")

    with caplog.at_level(logging.ERROR):
        play(scene)
    assert [record.message for record in caplog.records] == [
        "A connection was cut because of a bug; please report it"
    ]


def test_a_broken_connection_that_is_not_read_does_not_keep_the_loop_awake(play: Play) -> None:
    """epoll would report a peer that is gone in every turn."""

    async def scene(poller: Poller) -> None:
        async with connected(poller) as (end, peer):
            end.transport.pause_reading()
            reset(peer)
            await turns()
            if isinstance(poller, EpollPoller):
                assert select.select([poller.fileno()], [], [], 0)[0] == []
            assert not end.lost.done()
            end.transport.resume_reading()
            await end.lost

    play(scene)
