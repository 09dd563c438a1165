"""The loop that sleeps in the poller's epoll: nothing else is forgotten over the traffic."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

import pytest

from llama_gguf.net.event_loop import TrafficLoop
from llama_gguf.net.poller import EpollPoller, Poller, poller
from tests.support.endpoints import Scene, connected, watched
from tests.support.processes import DEADLINE_SECONDS


def in_a_flood(trial: Scene, act: Callable[[int], None] = lambda _: None) -> None:
    """Run *trial* while a socket is always ready; *act* receives the number of bytes read."""

    async def flooded(watcher: Poller) -> None:
        async with connected(watcher, socket.AF_UNIX) as (end, peer):

            def go_on(data: bytes) -> None:
                act(len(end.received))
                peer.send(b"x")

            end.on_data = go_on
            peer.send(b"x")
            await trial(watcher)

    with asyncio.Runner(loop_factory=TrafficLoop) as runner:
        runner.run(watched(flooded))


def test_its_poller_is_the_one_that_is_chosen() -> None:
    async def trial(watcher: Poller) -> None:
        assert isinstance(watcher, EpollPoller)

    in_a_flood(trial)


def test_timers_run() -> None:
    async def trial(watcher: Poller) -> None:
        await asyncio.sleep(0.01)

    in_a_flood(trial)


def test_what_the_traffic_schedules_is_run() -> None:
    async def trial(watcher: Poller) -> None:
        await soon.wait()
        await later.wait()

    def act(received: int) -> None:
        loop = asyncio.get_running_loop()
        if received == 3:
            loop.call_soon(soon.set)
        if received == 5:
            loop.call_later(0.001, later.set)

    soon, later = asyncio.Event(), asyncio.Event()
    in_a_flood(trial, act)


def test_the_loop_s_own_files_are_watched() -> None:
    async def trial(watcher: Poller) -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        theirs.send(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()

    ours, theirs = socket.socketpair()
    with theirs:
        in_a_flood(trial)


def test_another_thread_wakes_the_loop() -> None:
    async def trial(watcher: Poller) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        caller = threading.Thread(target=lambda: loop.call_soon_threadsafe(done.set))
        caller.start()
        await done.wait()
        caller.join()

    in_a_flood(trial)


def test_a_signal_wakes_the_loop() -> None:
    async def trial(watcher: Poller) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, done.set)
        os.kill(os.getpid(), signal.SIGUSR2)
        await done.wait()
        loop.remove_signal_handler(signal.SIGUSR2)

    in_a_flood(trial)


@pytest.mark.parametrize("has_had_one", [False, True])
def test_without_a_poller_it_is_a_loop_like_any_other(has_had_one: bool) -> None:
    async def trial() -> None:
        if has_had_one:
            poller(asyncio.get_running_loop()).close()
        await asyncio.sleep(0.001)
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            theirs.send(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    with asyncio.Runner(loop_factory=TrafficLoop) as runner:
        runner.run(asyncio.wait_for(trial(), DEADLINE_SECONDS))


def test_it_sleeps_while_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    turn = EpollPoller.turn

    def counted(watcher: EpollPoller, wait: float = 0.0) -> bool:
        nonlocal turns
        turns += 1
        return turn(watcher, wait)

    monkeypatch.setattr(EpollPoller, "turn", counted)

    async def trial() -> None:
        with closing(poller(asyncio.get_running_loop())):
            for _ in range(10):
                await asyncio.sleep(0.001)

    with asyncio.Runner(loop_factory=TrafficLoop) as runner:
        runner.run(trial())
    # For each sleep one until it is over, and one for what comes of it; a few for the loop's own.
    assert turns < 100


# Names --------------------------------------------------------------------------------------------


def test_a_name_is_looked_up() -> None:
    async def trial() -> set[object]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        return {address[0] for *_, address in found}

    with asyncio.Runner(loop_factory=TrafficLoop) as runner:
        assert runner.run(trial()) <= {"127.0.0.1", "::1"}


_HANGS: Final = """\
import asyncio, socket, threading
from llama_gguf.net.event_loop import TrafficLoop

has_begun = threading.Event()

def hang(*args, **options):
    has_begun.set()
    threading.Event().wait()

socket.getaddrinfo = hang

async def main():
    connecting = asyncio.ensure_future(asyncio.open_connection("engine", 80))
    while not has_begun.is_set():
        await asyncio.sleep(0.001)
    connecting.cancel()

with asyncio.Runner(loop_factory=TrafficLoop) as runner:
    runner.run(main())
print("left")
"""


@pytest.mark.processes
def test_a_resolver_that_hangs_does_not_block_exit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS], check=True, capture_output=True, text=True, timeout=30
    )

    assert (done.stdout, done.stderr) == ("left\n", "")
