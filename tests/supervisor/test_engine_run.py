"""Histories of an engine in virtual time: the published statuses, and what is done."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.activity import Activity
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import listen_flags
from llama_gguf.engines.devices import Device
from llama_gguf.engines.probe import Finding
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.engines.watchdogs import Progress
from llama_gguf.events import event_of, facts_of
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.engine_log import open_engine_log
from llama_gguf.supervisor.engine_run import EngineManager
from llama_gguf.supervisor.launch import Launch
from llama_gguf.values import replace
from tests.support.processes import free_ports
from tests.support.virtual_time import run

S = ChildState
UP = Finding(S.READY, 4, "tiny", request_tokens=512)
LOADS = Finding(S.LOADING)
GONE = Finding(S.UNREACHABLE)
NO_RESTARTS = {"crash": 0, "stall": 0, "hang": 0}
"""Every reason is known from the start, so that the counters of a scrape begin at 0."""


class FakeChild:
    """A process that the test controls."""

    def __init__(self) -> None:
        self.pid = 4711
        self.last_lines: deque[str] = deque()
        self.returncode: int
        self.was_out_of_memory = False
        self.did = Progress()
        self.term_seconds = 0.0
        self._died = asyncio.get_running_loop().create_future()

    def die(self, returncode: int, *last_lines: str) -> None:
        self.last_lines.extend(last_lines)
        self.returncode = returncode
        if not self._died.done():
            self._died.set_result(returncode)

    async def wait(self) -> int:
        return await asyncio.shield(self._died)

    async def stop(self, *, term_seconds: float) -> None:
        self.term_seconds = term_seconds
        self.die(0)

    def kill_group(self) -> None:
        pass

    async def read_output(self, on_line: Callable[[str], None]) -> None:
        await self._died

    def progress(self) -> Progress:
        return self.did


class Rig:
    """An engine manager whose gateway, process and probe are controlled by the test."""

    def __init__(
        self, folder: Path, *, name: str = "llama-server", keeper: Any = None, **overrides: Any
    ) -> None:
        usual = {"port_backend": free_ports(1)[0], "log_dir": str(folder), "instance_id": "box"}
        self.settings = Settings.of(**{**usual, **overrides})
        self.name = name
        self.spawned: list[tuple[str, Sequence[str]]] = []
        self.probed: list[EngineAddress] = []
        self.children: list[FakeChild] = []
        self.published: list[EngineStatus] = []
        self.finding = LOADS
        self.list_seconds = 0.0
        self.devices: Sequence[Device] | None = None
        self.is_stopping = False
        self.spawn_error: OSError | None = None
        self.address = EngineAddress.of(self.settings.upstream)
        self.engine = EngineManager(
            name,
            self.address,
            settings=self.settings.supervision,
            prepare=self._prepare,
            open_log=lambda: open_engine_log(self.settings.logs),
            publish=self.published.append,
            is_stopping=lambda: self.is_stopping,
            rng=lambda: 0.0,
            keeper=keeper,
            spawn=self._spawn,
            make_probe=self._make_probe,
        )
        self.gateway_acknowledges = True
        self.activity = Activity()
        self.running: asyncio.Task[int]

    def _make_probe(self, address: EngineAddress, *, timeout: float) -> Rig:
        self.probed.append(address)
        return self

    async def look(self) -> Finding:
        return self.finding

    async def _spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        reads_output: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        if self.spawn_error is not None:
            raise self.spawn_error
        self.spawned.append((name, argv))
        self.children.append(FakeChild())
        return cast("Child", self.children[-1])

    @property
    def child(self) -> FakeChild:
        return self.children[-1]

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _prepare(self) -> Launch:
        return Launch(
            [self.name, "--verbose"],
            {},
            model_bytes=100,
            facts={"context": 2048},
            sizes="CTX=16384, PARALLEL=0, NGL=99",
            list_devices=self._list_devices,
        )

    async def _list_devices(self) -> Sequence[Device] | None:
        await asyncio.sleep(self.list_seconds)
        return self.devices

    async def start(self) -> None:
        self.running = asyncio.get_running_loop().create_task(self.engine.run())
        await self.until(S.LOADING)

    async def start_ready(self) -> None:
        await self.start()
        await self.up()

    async def up(self) -> None:
        self.finding = UP
        await self.until(S.READY)

    async def until(self, state: ChildState) -> None:
        """Let time pass until the engine is in *state*; the gateway acknowledges each status."""
        async with asyncio.timeout(2000):
            while self.engine.status.state is not state:
                await self.pass_time(0.1)

    async def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            await asyncio.sleep(0.1)
            self.report_activity()

    def report_activity(self, **changes: Any) -> None:
        """Report an activity of the gateway with *changes*."""
        self.activity = replace(self.activity, **changes)
        if self.gateway_acknowledges:
            self.engine.on_activity(
                replace(self.activity, acknowledged_revision=self.engine.status.revision)
            )

    async def end(self) -> None:
        self.engine.leave()
        if self.engine.child is not None:
            self.child.die(0)
        else:
            self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    @property
    def states(self) -> list[ChildState]:
        """The published states without repetitions."""
        states = [status.state for status in self.published]
        return [s for n, s in enumerate(states) if n == 0 or s is not states[n - 1]]


Scenario = Callable[[Rig], Awaitable[None]]


def play(folder: Path, scenario: Scenario, **settings: Any) -> Rig:
    async def whole() -> Rig:
        rig = Rig(folder, **settings)
        await scenario(rig)
        if not rig.running.done():
            await rig.end()
        return rig

    return run(lambda now: whole())


# Loading ------------------------------------------------------------------------------------------


def test_a_load_is_published_with_its_progress_and_duration(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start()
        rig.child.did = Progress(read_bytes=40)
        await rig.pass_time(1.0)
        assert rig.engine.status.progress == 0.4
        await rig.up()

        status = rig.engine.status
        assert (status.slots, status.model, status.progress) == (4, "tiny", None)
        assert status.load_seconds == pytest.approx(1.0, abs=0.5)
        assert status.facts == rig.published[0].facts == {"context": 2048}
        assert status.request_tokens == 512

    rig = play(tmp_path, scenario)
    assert rig.states == [S.LOADING, S.READY, S.STOPPING, S.STOPPED]


def test_the_progress_of_the_preparation_is_published(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start()
        rig.engine.report("fetching it", 0.5)
        assert (rig.published[-1].detail, rig.published[-1].progress) == ("fetching it", 0.5)

    play(tmp_path, scenario)


def test_a_first_load_without_progress_is_ended_and_not_repeated(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start()
        assert await rig.running == 1
        assert rig.now == pytest.approx(300.0, abs=5.0)
        assert "no visible progress for 300 s" in rig.engine.status.last_exit

    rig = play(tmp_path, scenario)
    assert rig.states == [S.LOADING, S.BACKOFF, S.FAILED]


def test_a_load_with_progress_may_take_hours(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start()
        for hour in range(1, 6):
            rig.child.did = Progress(read_bytes=hour << 30)
            await rig.pass_time(250.0)
        await rig.up()

    play(tmp_path, scenario)


# Deaths -------------------------------------------------------------------------------------------


def test_a_death_is_published_at_once_then_explained_and_followed_by_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        died_at = rig.now
        rig.finding = LOADS
        rig.child.die(1, "cudaMalloc failed: out of memory")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rig.published[-1].state is S.BACKOFF
        await rig.until(S.LOADING)

        assert rig.now - died_at == pytest.approx(1.0, abs=0.2)
        status = rig.engine.status
        assert status.last_exit == "exit status 1: The GPU does not have enough free memory."
        assert status.restarts == NO_RESTARTS | {"crash": 1}
        await rig.up()

    with caplog.at_level(logging.INFO):
        rig = play(tmp_path, scenario)
    assert len(rig.children) == 2
    assert "Current settings: CTX=16384, PARALLEL=0, NGL=99." in caplog.text


def test_a_crash_loop_ends_in_failure_with_the_childs_status(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        while not rig.running.done():
            rig.child.die(-signal.SIGSEGV)
            await rig.pass_time(30.0)

        assert await rig.running == 139
        assert rig.engine.status.state is S.FAILED
        assert "SIGSEGV" in rig.engine.status.detail

    rig = play(tmp_path, scenario, max_restarts=3)
    assert len(rig.children) == 4


def test_an_engine_that_cannot_be_restarted_has_died(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.spawn_error = OSError(11, "Resource temporarily unavailable")
        rig.child.die(1)
        await rig.pass_time(2.0)
        rig.spawn_error = None
        await rig.until(S.READY)

        assert rig.engine.status.restarts == NO_RESTARTS | {"crash": 2}

    play(tmp_path, scenario)


def test_a_port_that_another_process_has_taken_is_tried_again(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        with socket.create_server(("127.0.0.1", rig.settings.upstream.port_backend)):
            rig.child.die(1)
            await rig.pass_time(2.0)
            assert "The engine's port is taken." in rig.engine.status.last_exit
        await rig.until(S.READY)

    play(tmp_path, scenario)


# Devices ------------------------------------------------------------------------------------------

GPU, PEER = Device("CUDA0 (NVIDIA L4)", 2, 1), Device("RPC0 (10.0.0.2:50052)", 2, 1)
WITHOUT_PEER = "It runs without devices that it had before: RPC (10.0.0.2:50052)"


async def restart(rig: Rig, devices: Sequence[Device] | None) -> EngineStatus:
    """Its status after a death, and a start that has *devices*."""
    rig.devices = devices
    rig.child.die(1)
    await rig.until(S.BACKOFF)
    await rig.until(S.READY)
    return rig.engine.status


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    logged = [(event_of(record), facts_of(record)) for record in caplog.records]
    return [
        f"{event} {facts.get('devices', '')}".rstrip()
        for event, facts in logged
        if event in ("engine_degraded", "engine_complete")
    ]


def test_an_engine_without_a_device_that_it_had_is_degraded_until_the_device_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.devices = [PEER, GPU]
        await rig.start_ready()
        assert (rig.engine.status.detail, rig.engine.status.missing_devices) == ("", ())

        for _ in range(2):
            status = await restart(rig, [GPU])
            assert status.state is S.READY
            assert status.detail == WITHOUT_PEER
            assert status.missing_devices == ("RPC (10.0.0.2:50052)",)

        status = await restart(rig, [PEER, GPU])
        assert (status.detail, status.missing_devices) == ("", ())

    with caplog.at_level(logging.INFO):
        play(tmp_path, scenario)
    assert events(caplog) == ["engine_degraded ['RPC (10.0.0.2:50052)']", "engine_complete"]
    assert [r.levelname for r in caplog.records if event_of(r) == "engine_degraded"] == ["WARNING"]


def test_a_device_that_was_not_there_at_the_first_start_is_not_missed(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.devices = [GPU]
        await rig.start_ready()
        assert (await restart(rig, [PEER, GPU])).missing_devices == ()
        assert (await restart(rig, [GPU])).missing_devices == ("RPC (10.0.0.2:50052)",)

    play(tmp_path, scenario)


def test_a_life_that_never_served_has_no_say_about_devices(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.devices = [GPU]
        await rig.start_ready()
        rig.devices, rig.finding = [PEER, GPU], LOADS
        rig.child.die(1)
        await rig.until(S.BACKOFF)
        await rig.until(S.LOADING)
        rig.finding = UP

        assert (await restart(rig, [GPU])).missing_devices == ()

    play(tmp_path, scenario)


def test_unknown_devices_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(rig: Rig) -> None:
        rig.devices = [PEER, GPU]
        await rig.start_ready()
        assert (await restart(rig, None)).missing_devices == ()
        await restart(rig, [GPU])
        assert (await restart(rig, None)).detail == WITHOUT_PEER

    with caplog.at_level(logging.INFO):
        play(tmp_path, scenario)
    assert len(events(caplog)) == 1


def test_a_list_of_devices_that_takes_long_delays_a_start_for_ten_seconds(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.devices = [PEER, GPU]
        await rig.start_ready()
        rig.devices, rig.list_seconds, rig.finding = [GPU], 130.0, LOADS
        rig.child.die(1)
        died_at = rig.now
        await rig.until(S.BACKOFF)
        await rig.until(S.LOADING)
        assert rig.now - died_at == pytest.approx(1.0 + 10.0, abs=0.3)

        await rig.pass_time(130.0)  # it attempts the same connections
        await rig.up()
        assert rig.engine.status.detail == WITHOUT_PEER

        rig.devices = None
        assert (await restart(rig, [PEER, GPU])).detail == WITHOUT_PEER  # the list is not complete

    play(tmp_path, scenario)


def test_a_degraded_engine_that_sleeps_and_wakes_is_still_degraded(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.devices = [PEER]
        await rig.start_ready()
        await restart(rig, [])
        rig.finding = replace(UP, state=S.ASLEEP)
        await rig.until(S.ASLEEP)
        await rig.up()
        assert rig.engine.status.detail == WITHOUT_PEER

    play(tmp_path, scenario)


# Hanging ------------------------------------------------------------------------------------------


def test_an_engine_that_does_not_respond_is_reported_before_it_is_ended(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.finding = GONE
        await rig.pass_time(6)
        assert (rig.engine.status.state, rig.engine.status.is_silent) == (S.READY, True)

        rig.finding = UP
        await rig.pass_time(6)
        assert (rig.engine.status.state, rig.engine.status.is_silent) == (S.READY, False)

        rig.finding = GONE
        await rig.until(S.BACKOFF)
        assert not rig.engine.status.is_silent

    play(tmp_path, scenario)


def test_an_engine_that_does_not_respond_is_ended_and_restarted(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        silent_since = rig.now
        rig.finding = GONE
        await rig.until(S.BACKOFF)

        assert rig.now - silent_since == pytest.approx(31.0, abs=2.0)
        assert "It did not respond for 30 s." in rig.engine.status.detail
        await rig.until(S.LOADING)
        assert rig.engine.status.restarts == NO_RESTARTS | {"hang": 1}
        assert rig.engine.status.last_exit.endswith("It did not respond for 30 s.")
        await rig.up()

    rig = play(tmp_path, scenario)
    assert len(rig.children) == 2


def test_an_engine_that_responds_now_and_then_does_not_hang(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        for _ in range(20):
            rig.finding = GONE
            await rig.pass_time(25.0)
            rig.finding = UP
            await rig.pass_time(2.0)

    rig = play(tmp_path, scenario)
    assert len(rig.children) == 1


@pytest.mark.parametrize(("stall", "ends"), [(120.0, True), (0.0, False)])
def test_requests_without_any_response_end_it_only_if_configured(
    tmp_path: Path, stall: float, ends: bool
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.report_activity(busy=2, running=2)
        await rig.pass_time(125.0)

        assert (rig.engine.status.restarts == NO_RESTARTS | {"hang": 1}) == ends
        assert ("2 requests" in rig.engine.status.last_exit) == ends

    play(tmp_path, scenario, watchdog_stall=stall)


# Sleeping -----------------------------------------------------------------------------------------


def test_an_idle_engine_is_stopped_and_started_by_the_next_request(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        await rig.until(S.ASLEEP)
        assert not rig.engine.status.serves
        await rig.pass_time(100.0)
        assert rig.engine.child is None

        rig.report_activity(busy=1, engine_requested=True)
        await rig.until(S.READY)

        assert rig.engine.status.restarts == NO_RESTARTS
        assert rig.engine.status.last_exit == ""

    rig = play(tmp_path, scenario, idle_stop=60.0)
    assert len(rig.children) == 2


def test_a_request_at_the_last_moment_keeps_it_running(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.gateway_acknowledges = False
        await rig.until(S.ASLEEP)
        rig.gateway_acknowledges = True
        rig.report_activity(busy=1)
        await rig.until(S.READY)

    rig = play(tmp_path, scenario, idle_stop=60.0)
    assert rig.states[:4] == [S.LOADING, S.READY, S.ASLEEP, S.READY]
    assert len(rig.children) == 1


def test_without_an_acknowledgement_of_the_gateway_it_is_not_stopped(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.gateway_acknowledges = False
        await rig.until(S.ASLEEP)
        await rig.until(S.READY)

    rig = play(tmp_path, scenario, idle_stop=60.0)
    assert len(rig.children) == 1


def test_an_engine_that_sleeps_by_itself_is_shown_asleep_and_accepts_requests(
    tmp_path: Path,
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.finding = replace(UP, state=S.ASLEEP)
        await rig.until(S.ASLEEP)
        assert rig.engine.status.serves
        await rig.up()
        assert rig.engine.status.state is S.READY

    rig = play(tmp_path, scenario)
    assert len(rig.children) == 1


def test_an_engine_that_sleeps_by_itself_is_stopped_too_when_idle(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.finding = replace(UP, state=S.ASLEEP)
        await rig.until(S.ASLEEP)
        await rig.pass_time(70.0)
        assert rig.engine.child is None
        assert not rig.engine.status.serves

    play(tmp_path, scenario, idle_stop=60.0)


def test_an_engine_that_dies_in_its_own_sleep_is_restarted(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.finding = replace(UP, state=S.ASLEEP)
        await rig.until(S.ASLEEP)
        rig.finding = LOADS
        rig.child.die(-signal.SIGABRT)
        await rig.until(S.LOADING)
        assert rig.engine.status.restarts == NO_RESTARTS | {"crash": 1}

    play(tmp_path, scenario)


# Leaving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("died_of", [0, -signal.SIGKILL])
def test_a_death_while_serve_stops_is_the_last(tmp_path: Path, died_of: int) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.is_stopping = True
        rig.child.die(died_of)
        assert await rig.running == 0

    rig = play(tmp_path, scenario)
    assert rig.engine.status.state is S.STOPPED
    assert len(rig.children) == 1


class RecordingKeeper:
    """As ``PromptKeeper``."""

    facts: Mapping[str, Any] = {"life": 1}

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def argv_of(self, launch: Launch) -> Sequence[str]:
        return launch.argv

    async def restore(self, source: object, *, is_leaving: Callable[[], bool]) -> None:
        self.calls.append("restore")

    async def until_saved(self) -> None: ...

    async def save(self, **_: object) -> bool:
        self.calls.append("save")
        return False

    async def on_tick(self, activity: object) -> bool:
        return False


def test_the_slots_of_an_idle_engine_are_saved_and_not_of_one_that_sleeps_by_itself(
    tmp_path: Path,
) -> None:
    async def idle(rig: Rig) -> None:
        await rig.start_ready()
        await rig.until(S.ASLEEP)
        await rig.pass_time(2.0)

    async def asleep(rig: Rig) -> None:
        await rig.start_ready()
        rig.finding = replace(UP, state=S.ASLEEP, may_sleep=True)
        await rig.pass_time(120.0)
        assert not rig.engine.status.wakes_itself  # it was stopped

    keepers = RecordingKeeper(), RecordingKeeper()
    play(tmp_path, idle, keeper=keepers[0], idle_stop=60.0)
    play(tmp_path, asleep, keeper=keepers[1], idle_stop=60.0)
    assert [keeper.calls for keeper in keepers] == [["restore", "save"], ["restore"]]


def test_an_idle_engine_is_not_put_to_sleep_while_serve_stops(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.is_stopping = True
        await rig.pass_time(100.0)
        assert rig.engine.status.state is S.READY

    play(tmp_path, scenario, idle_stop=60.0)


def test_leaving_during_sleep_or_backoff_is_immediate(tmp_path: Path) -> None:
    async def asleep(rig: Rig) -> None:
        await rig.start_ready()
        await rig.until(S.ASLEEP)
        await rig.pass_time(1.0)
        rig.engine.leave()
        assert rig.engine.status.state is S.STOPPED

    async def in_backoff(rig: Rig) -> None:
        await rig.start_ready()
        rig.child.die(1)
        await rig.until(S.BACKOFF)
        await rig.pass_time(0.1)
        rig.engine.leave()
        assert rig.engine.status.state is S.STOPPED

    async def while_devices_are_listed(rig: Rig) -> None:
        await rig.start_ready()
        rig.list_seconds = 5.0
        rig.child.die(1)
        await rig.pass_time(3.0)
        rig.engine.leave()
        assert rig.engine.status.state is S.STOPPED
        assert await rig.running == 0
        assert len(rig.children) == 1

    play(tmp_path, asleep, idle_stop=60.0)
    play(tmp_path, in_backoff)
    play(tmp_path, while_devices_are_listed)


@pytest.mark.parametrize("finding", [UP, GONE, replace(UP, state=S.ASLEEP)], ids=lambda f: f.state)
def test_a_slow_stop_is_clean_regardless_of_the_probe(tmp_path: Path, finding: Finding) -> None:
    async def scenario(rig: Rig) -> None:
        if finding is UP:
            await rig.start()
        else:
            await rig.start_ready()
        rig.engine.leave()
        rig.finding = finding
        await rig.pass_time(100.0)
        rig.child.die(-signal.SIGKILL)

        assert await rig.running == 0
        assert rig.engine.status.state is S.STOPPED

    rig = play(tmp_path, scenario)
    assert rig.states[-2:] == [S.STOPPING, S.STOPPED]


# Several engines ----------------------------------------------------------------------------------


def test_two_engines_of_one_supervisor_share_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Rig(tmp_path / "first", name="llama-server 0", max_restarts=0)
        second = Rig(tmp_path / "second", name="llama-server 1", max_restarts=5)
        for rig in (first, second):
            await rig.start_ready()
        first.child.die(3)

        assert await first.running == 3
        assert second.states == [S.LOADING, S.READY]
        for number, rig in enumerate((first, second)):
            ((name, argv),) = rig.spawned
            assert name == f"llama-server {number}"
            assert argv == [name, "--verbose", *listen_flags(rig.address)]
        assert first.probed[0] != second.probed[0]
        await second.end()

    run(lambda now: scenario())


# Being replaced -----------------------------------------------------------------------------------


def test_an_engine_that_drains_is_drained_once_the_gateway_sends_it_nothing(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.report_activity(busy=1, running=1)
        rig.engine.drain()
        draining = asyncio.get_running_loop().create_task(rig.engine.until_drained())
        assert rig.engine.status.state is S.DRAINING

        await rig.pass_time(5.0)
        assert not draining.done()
        rig.engine.on_activity(replace(rig.activity, running=0))  # of before it drained
        await asyncio.sleep(0)
        assert not draining.done()
        rig.report_activity(busy=0, running=0)
        await asyncio.wait_for(draining, 1.0)

    play(tmp_path, scenario)


def test_an_engine_that_drains_is_not_restarted_after_its_death(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.engine.drain()
        rig.child.die(-signal.SIGSEGV)

        assert await rig.running == 0
        assert rig.engine.status.state is S.STOPPED

    assert len(play(tmp_path, scenario).children) == 1


def test_an_engine_that_drains_is_not_stopped_as_idle(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.engine.drain()
        await rig.pass_time(60.0)

        assert rig.engine.status.state is S.DRAINING

    play(tmp_path, scenario, idle_stop=5.0)


def test_a_hang_while_it_drains_ends_it(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_ready()
        rig.engine.drain()
        rig.finding = GONE

        assert await rig.running == 0
        assert "It did not respond for 30 s." in rig.engine.status.last_exit

    play(tmp_path, scenario)
