"""A real gateway: messages, signals and restarts. What its deaths cost: test_supervisor.py."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.engines.activity import Activity
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.net.listener import listen
from llama_gguf.supervisor.gateway_run import GatewayManager

pytestmark = pytest.mark.processes

SECONDS = 30.0


class Running:
    def __init__(self, manager: GatewayManager, reports: list[Activity | None]) -> None:
        self.manager = manager
        self.reports = reports
        self.task: asyncio.Task[int]

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not fact():  # noqa: ASYNC110  # a fact about another process
                await asyncio.sleep(0.01)

    async def until_ready(self) -> None:
        await self.until(lambda: self.manager.state is ChildState.READY)

    @property
    def pid(self) -> int:
        assert self.manager.child is not None
        return self.manager.child.pid


def run(folder: Path, scenario: Callable[[Running], Awaitable[None]]) -> None:
    environ = {"PATH": os.defpath, "DATA_DIR": str(folder), "AUTH_ENABLED": "false"}

    async def both() -> None:
        reports: list[Activity | None] = []
        with closing(listen("127.0.0.1", 0)) as listener:
            manager = GatewayManager(environ, listener, on_activity=reports.append, rng=lambda: 0.0)
            running = Running(manager, reports)
            running.task = asyncio.get_running_loop().create_task(manager.run())
            try:
                await scenario(running)
            finally:
                manager.leave()
                if manager.child is not None:
                    await manager.child.stop(term_seconds=10)
                async with asyncio.timeout(SECONDS):
                    assert await running.task == 0

    asyncio.run(both())


def test_each_gateway_receives_the_engines_status_and_acknowledges_it(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        status = EngineStatus(ChildState.LOADING, since=0.0, revision=41)
        running.manager.send_status(status)
        await running.until_ready()
        await running.until(lambda: Activity(acknowledged_revision=41) in running.reports)
        running.manager.send_status(status.moved(ChildState.READY, 1.0))
        running.reports.clear()

        os.kill(running.pid, signal.SIGKILL)

        await running.until(lambda: None in running.reports)
        await running.until_ready()
        await running.until(lambda: Activity(acknowledged_revision=41) in running.reports)

    run(tmp_path, scenario)


def test_an_early_signal_is_delivered_once_the_gateway_is_ready(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        await running.until(lambda: running.manager.child)
        for _ in range(3):
            running.manager.pass_on(signal.SIGHUP)
            running.manager.pass_on(signal.SIGUSR1)
        pid = running.pid
        await running.until_ready()
        await running.until(lambda: not running.manager._pending_signals)
        running.manager.pass_on(signal.SIGUSR1)
        running.manager.send_status(EngineStatus(ChildState.READY, since=0.0, revision=3))
        await running.until(lambda: Activity(acknowledged_revision=3) in running.reports)
        assert running.pid == pid

    run(tmp_path, scenario)


def test_leaving_between_two_lives_starts_no_other_gateway(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        await running.until_ready()
        os.kill(running.pid, signal.SIGKILL)
        await running.until(lambda: running.manager.state is ChildState.BACKOFF)
        running.manager.leave()
        assert running.manager.state is ChildState.STOPPED
        assert await running.task == 0
        assert running.manager.child is None

    run(tmp_path, scenario)
