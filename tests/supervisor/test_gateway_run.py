"""A real gateway: messages, signals and restarts. What its deaths cost: test_supervisor.py."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.engines.activity import OWNERS, Activity
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.net.binding import listen
from llama_gguf.supervisor.gateway_run import MAX_BUFFERED_BYTES, GatewayManager
from llama_gguf.values import replace

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

    def has_acknowledged(self, revision: int) -> bool:
        return any(
            report is not None and report.acknowledged_revision == revision
            for report in self.reports
        )

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
        await running.until(lambda: running.has_acknowledged(41))
        running.manager.send_status(status.moved(ChildState.READY, 1.0))
        running.reports.clear()

        os.kill(running.pid, signal.SIGKILL)

        await running.until(lambda: None in running.reports)
        await running.until_ready()
        await running.until(lambda: running.has_acknowledged(41))

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
        await running.until(lambda: running.has_acknowledged(3))
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


def test_each_gateway_receives_the_status_of_every_replica_except_of_those_that_are_gone(
    tmp_path: Path,
) -> None:
    def replicas_in(running: Running) -> set[str]:
        last = next((report for report in reversed(running.reports) if report is not None), None)
        return set() if last is None else set(last.replicas)

    async def scenario(running: Running) -> None:
        statuses = [
            EngineStatus(ChildState.READY, 0.0, str(n), f"127.0.0.1:{n + 1}", revision=n)
            for n in range(3)
        ]
        for status in statuses:
            running.manager.send_status(status)
        addresses = {status.address for status in statuses}
        await running.until(lambda: addresses <= replicas_in(running))
        removed = replace(statuses[1], state=ChildState.STOPPED, is_removed=True, revision=9)
        running.manager.send_status(removed)
        await running.until(lambda: removed.address not in replicas_in(running))

        running.reports.clear()
        os.kill(running.pid, signal.SIGKILL)

        await running.until(lambda: addresses - {removed.address} <= replicas_in(running))
        assert removed.address not in replicas_in(running)

    run(tmp_path, scenario)


class Channel:
    """A writer to a gateway that does not read while ``unread`` is high."""

    def __init__(self) -> None:
        self.unread = 0
        self.lines: list[bytes] = []
        self.transport = self

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, line: bytes) -> None:
        self.lines.append(line)


def test_a_gateway_that_reads_again_receives_what_it_has_missed() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        manager = GatewayManager({}, listener, on_activity=lambda _: None, rng=lambda: 0.0)
    channel = Channel()
    manager._channel = channel  # type: ignore[assignment]
    channel.unread = MAX_BUFFERED_BYTES
    ready = EngineStatus(ChildState.READY, 0.0, address="127.0.0.1:1", revision=3)
    for status in (ready.moved(ChildState.LOADING, 0.0), ready):
        manager.send_status(status)
    assert channel.lines == []

    channel.unread = 0
    manager._on_line(Activity().to_line())

    assert channel.lines == [ready.to_line()]


@pytest.mark.parametrize(("number", "is_lost"), [(signal.SIGKILL, True), (signal.SIGTERM, False)])
def test_only_a_gateway_that_was_killed_may_not_have_reported_all_owners(
    tmp_path: Path, number: signal.Signals, is_lost: bool
) -> None:
    owners: list[Mapping[str, Sequence[str]] | None] = []

    async def scenario(running: Running) -> None:
        running.manager._on_owners = owners.append
        running.manager._on_line(OWNERS + b'{"a:1": ["ann"]}\n')
        await running.until_ready()
        os.kill(running.pid, number)
        await running.until(lambda: None in running.reports)

    run(tmp_path, scenario)
    assert owners == [{"a:1": ["ann"]}, *([None] if is_lost else [])]
