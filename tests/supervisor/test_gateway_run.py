"""A real gateway that is kept; what it says and is told. Its deaths are in test_supervisor.py."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from llama_gguf.engines.activity import Activity
from llama_gguf.engines.status import EngineState, EngineStatus
from llama_gguf.net.listener import listen
from llama_gguf.supervisor.gateway_run import GatewayKeeper

SECONDS = 30.0


class Kept:
    def __init__(self, keeper: GatewayKeeper, heard: list[Activity | None]) -> None:
        self.keeper = keeper
        self.heard = heard
        self.keeping: asyncio.Task[int]

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not fact():  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0.01)

    async def until_ready(self) -> None:
        await self.until(lambda: self.keeper.state is EngineState.READY)

    @property
    def pid(self) -> int:
        assert self.keeper.child is not None
        return self.keeper.child.pid


def run(folder: Path, scenario: Callable[[Kept], Awaitable[None]]) -> None:
    environ = {"PATH": os.defpath, "DATA_DIR": str(folder), "AUTH_ENABLED": "false"}

    async def both() -> None:
        heard: list[Activity | None] = []
        with closing(listen("127.0.0.1", 0)) as listener:
            keeper = GatewayKeeper(environ, listener, hear=heard.append, rng=lambda: 0.0)
            kept = Kept(keeper, heard)
            kept.keeping = asyncio.get_running_loop().create_task(keeper.keep())
            try:
                await scenario(kept)
            finally:
                keeper.leave()
                if keeper.child is not None:
                    await keeper.child.stop(term_seconds=10)
                async with asyncio.timeout(SECONDS):
                    assert await kept.keeping == 0

    asyncio.run(both())


def test_it_is_told_how_the_engine_is_and_says_so_and_so_does_the_next_one(tmp_path: Path) -> None:
    async def scenario(kept: Kept) -> None:
        status = EngineStatus(EngineState.LOADING, since=0.0, revision=41)
        kept.keeper.tell(status)
        await kept.until_ready()
        await kept.until(lambda: Activity(heard=41) in kept.heard)
        kept.keeper.tell(status.moved(EngineState.READY, 1.0))
        kept.heard.clear()

        os.kill(kept.pid, signal.SIGKILL)

        await kept.until(lambda: None in kept.heard)
        await kept.until_ready()
        await kept.until(lambda: Activity(heard=41) in kept.heard)

    run(tmp_path, scenario)


def test_a_signal_that_comes_too_early_is_kept_for_it(tmp_path: Path) -> None:
    async def scenario(kept: Kept) -> None:
        await kept.until(lambda: kept.keeper.child)
        for _ in range(3):
            kept.keeper.pass_on(signal.SIGHUP)
            kept.keeper.pass_on(signal.SIGUSR1)
        pid = kept.pid
        await kept.until_ready()
        await kept.until(lambda: not kept.keeper._waiting_signals)
        kept.keeper.pass_on(signal.SIGUSR1)
        kept.keeper.tell(EngineStatus(EngineState.READY, since=0.0, revision=3))
        await kept.until(lambda: Activity(heard=3) in kept.heard)
        assert kept.pid == pid

    run(tmp_path, scenario)


def test_leaving_between_two_lives_starts_no_other(tmp_path: Path) -> None:
    async def scenario(kept: Kept) -> None:
        await kept.until_ready()
        os.kill(kept.pid, signal.SIGKILL)
        await kept.until(lambda: kept.keeper.state is EngineState.BACKOFF)
        kept.keeper.leave()
        assert kept.keeper.state is EngineState.STOPPED
        assert await kept.keeping == 0
        assert kept.keeper.child is None

    run(tmp_path, scenario)
