"""Histories of several engines in virtual time: who sleeps and wakes, replacements, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.activity import Activity, ReplicaActivity
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Finding
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.engine_log import open_engine_log
from llama_gguf.supervisor.launch import Launch
from llama_gguf.supervisor.local_fleet import LocalFleet, Setup
from llama_gguf.supervisor.prompt_keeper import Client
from tests.supervisor.slots import Box, FakeSlots
from tests.supervisor.test_engine_run import UP, FakeChild
from tests.support.processes import row_of_ports
from tests.support.virtual_time import run

S = ChildState
LOAD_SECONDS = 3.0


class Engine(FakeChild):
    """A process, and how it was started."""

    def __init__(self, version: str, port: int) -> None:
        super().__init__()
        self.version = version
        self.port = port
        self.born_at = asyncio.get_running_loop().time()
        self._slots: FakeSlots | None = None

    def slots_in(self, box: Box) -> FakeSlots:
        self._slots = self._slots or FakeSlots(box.folder, restore_seconds=box.restore_seconds)
        return self._slots

    @property
    def is_alive(self) -> bool:
        return not self._died.done()


@dataclass
class Gateway:
    """The gateway's end of the channel: what it knows, and the requests that it has."""

    running: dict[str, int] = field(default_factory=dict)
    responses: dict[str, int] = field(default_factory=dict)
    known: dict[str, EngineStatus] = field(default_factory=dict)
    seen: list[tuple[str, ChildState]] = field(default_factory=list)
    revisions: dict[str, int] = field(default_factory=dict)
    wants_engine: bool = False
    being_read: int = 0

    def update(self, status: EngineStatus) -> None:
        # Otherwise it could acknowledge the status of an engine that it has not received.
        assert status.revision > self.revisions.get(status.address, -1)
        self.revisions[status.address] = status.revision
        self.seen.append((status.replica, status.state))
        if status.is_removed:
            self.known.pop(status.address, None)
        else:
            self.known[status.address] = status

    def activity(self) -> Activity:
        running = sum(self.running.values())
        return Activity(
            busy=running + self.being_read,
            running=running,
            responses=sum(self.responses.values()),
            engine_requested=self.wants_engine,
            replicas={
                key: ReplicaActivity(
                    status.revision, self.running.get(key, 0), self.responses.get(key, 0)
                )
                for key, status in self.known.items()
            },
        )


class Rig:
    def __init__(self, folder: Path, number: int, box: Box | None = None, **settings: Any) -> None:
        self.box = box
        first = row_of_ports(number + 2)
        self.settings = Settings.of(port_backend=first, log_dir=str(folder), **settings)
        self.number = number
        self.engines: list[Engine] = []
        self.broken: set[str] = set()
        """The versions that exit while they load."""
        self.has_room = True
        self.is_stopping = False
        self.gateway = Gateway()
        self.progress: list[str] = []
        self.fleet = LocalFleet(
            self.settings,
            prepare=self._prepare,
            open_log=lambda replica: open_engine_log(self.settings.logs, replica),
            publish=self.gateway.update,
            is_stopping=lambda: self.is_stopping,
            rng=lambda: 0.0,
            spawn=self._spawn,
            make_probe=self._make_probe,
            prompts=None if box is None else box.cache,
            make_client=self._client,
        )
        self.running: asyncio.Task[int]

    async def _prepare(self) -> Sequence[Launch]:
        return [self.launch("old") for _ in range(self.number)]

    def launch(self, version: str) -> Launch:
        async def has_room(has_same_file: bool) -> bool:
            del has_same_file
            return self.has_room

        prompts = None if self.box is None else self.box.source()
        return Launch([version], {}, has_room=has_room, prompts=prompts)

    def setups(self, number: int, version: str = "new") -> list[Setup]:
        return [Setup(self.launch(version), self.settings.supervision) for _ in range(number)]

    async def _spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        reads_output: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        engine = Engine(argv[0], int(argv[-1]))
        self.engines.append(engine)
        if engine.version in self.broken:
            engine.die(9)
        return cast("Child", engine)

    def _client(self, address: EngineAddress) -> Client:
        return cast("Client", SlotsAt(self, address.port))

    def slots(self, replica: str) -> FakeSlots:
        """What the engine of *replica* holds."""
        (port,) = [int(self.address(replica).rpartition(":")[2])]
        return SlotsAt(self, port).slots_there

    def _make_probe(self, address: EngineAddress, *, timeout: float) -> Prober:
        return Prober(self, address.port)

    # What the test does

    async def start(self) -> None:
        self.running = asyncio.get_running_loop().create_task(self.fleet.run())
        await self.until(lambda: self.ready == list(map(str, range(self.number))))

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(1000):
            while not fact():
                await asyncio.sleep(0.1)
                self.fleet.on_activity(self.gateway.activity())

    async def pass_time(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        await self.until(lambda: asyncio.get_running_loop().time() >= end)

    async def restart(self, number: int, *, drain_seconds: float = 30.0) -> None:
        task = asyncio.get_running_loop().create_task(
            self.fleet.replace_all(
                self.setups(number),
                drain_seconds=drain_seconds,
                on_progress=self.progress.append,
            )
        )
        await self.until(task.done)
        await task

    async def end(self) -> None:
        self.is_stopping = True
        await self.fleet.stop_idle()
        await self.fleet.stop(asyncio.Event())
        await self.running

    # What it finds

    @property
    def ready(self) -> list[str]:
        """The replicas to which the gateway sends requests."""
        return sorted(
            status.replica for status in self.gateway.known.values() if status.state is S.READY
        )

    @property
    def alive(self) -> list[str]:
        return sorted(engine.version for engine in self.engines if engine.is_alive)

    def address(self, replica: str) -> str:
        (found,) = [a for a, status in self.gateway.known.items() if status.replica == replica]
        return found


class SlotsAt:
    """A client of whichever engine listens on a port."""

    def __init__(self, rig: Rig, port: int) -> None:
        self._rig = rig
        self._port = port

    @property
    def slots_there(self) -> FakeSlots:
        box = self._rig.box
        assert box is not None
        engine = next(e for e in self._rig.engines if e.is_alive and e.port == self._port)
        return engine.slots_in(box)

    def __getattr__(self, name: str) -> object:
        return getattr(self.slots_there, name)


@dataclass
class Prober:
    rig: Rig
    port: int

    async def look(self) -> Finding:
        now = asyncio.get_running_loop().time()
        for engine in self.rig.engines:
            if engine.is_alive and engine.port == self.port:
                return UP if now - engine.born_at >= LOAD_SECONDS else Finding(S.LOADING)
        return Finding(S.UNREACHABLE)


def play(
    folder: Path,
    number: int,
    scenario: Callable[[Rig], Awaitable[None]],
    box: Box | None = None,
    **settings: Any,
) -> Rig:
    async def whole() -> Rig:
        rig = Rig(folder, number, box, **settings)
        await rig.start()
        await scenario(rig)
        if not rig.running.done():
            await rig.end()
        assert rig.alive == []
        return rig

    return run(lambda now: whole())


# Idle replicas ------------------------------------------------------------------------------------


def test_replicas_sleep_from_the_last_and_wake_from_the_first(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: not rig.ready)
        slept = [replica for replica, state in rig.gateway.seen if state is S.ASLEEP]
        assert slept == ["2", "1", "0"]
        await rig.until(lambda: not rig.alive)

        rig.gateway.wants_engine = True
        await rig.until(lambda: rig.ready == ["0"])
        assert len(rig.alive) == 1  # the next one wakes when the first is busy
        await rig.until(lambda: rig.ready == ["0", "1"])
        rig.gateway.wants_engine = False

    play(tmp_path, 3, scenario, idle_stop=5.0)


def test_a_replica_with_a_request_stays_awake_and_so_do_those_before_it(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.gateway.running[rig.address("1")] = 1
        await rig.pass_time(60.0)
        assert rig.ready == ["0", "1"]

        rig.gateway.running.clear()
        rig.gateway.being_read = 1
        await rig.pass_time(60.0)
        assert rig.ready == ["0"]  # a request that is being read needs the last one

    play(tmp_path, 3, scenario, idle_stop=5.0)


def test_a_gateway_that_dies_does_not_let_replicas_sleep(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.fleet.on_activity(None)
        await asyncio.sleep(3.0)
        assert rig.ready == ["0", "1"]
        await rig.pass_time(1.0)

    play(tmp_path, 2, scenario, idle_stop=5.0)


# Watchdogs and deaths -----------------------------------------------------------------------------


def test_a_replica_that_sends_nothing_is_restarted_and_the_others_are_not(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.gateway.running = {rig.address("0"): 1, rig.address("1"): 1}

        async with asyncio.timeout(100):
            while ("1", S.BACKOFF) not in rig.gateway.seen:
                rig.gateway.responses[rig.address("0")] = len(rig.gateway.seen) + int(
                    asyncio.get_running_loop().time() * 10
                )
                await rig.pass_time(0.5)
        rig.gateway.running.clear()
        await rig.until(lambda: rig.ready == ["0", "1"])
        assert ("0", S.BACKOFF) not in rig.gateway.seen

    play(tmp_path, 2, scenario, watchdog_stall=10.0)


def test_the_last_replica_that_is_given_up_ends_it_with_its_status(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for replica, status in (("1", 3), ("0", 5)):
            address = rig.address(replica)
            (engine,) = [each for each in rig.engines if address.endswith(f":{each.port}")]
            assert not rig.running.done()

            def has_failed(address: str = address) -> bool:
                return rig.gateway.known[address].state is S.FAILED

            engine.die(status)
            await rig.until(has_failed)
        assert await rig.running == 5

    play(tmp_path, 2, scenario, max_restarts=0)


# Rolling restarts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("has_room", [True, False])
def test_engines_are_replaced_one_at_a_time(tmp_path: Path, has_room: bool) -> None:
    async def scenario(rig: Rig) -> None:
        rig.has_room = has_room
        least = 3

        def watch(text: str) -> None:
            nonlocal least
            least = min(least, len(rig.ready))

        task = asyncio.get_running_loop().create_task(
            rig.fleet.replace_all(rig.setups(3), drain_seconds=30.0, on_progress=watch)
        )
        await rig.until(task.done)
        await task
        assert least == (3 if has_room else 2)
        assert rig.alive == ["new"] * 3
        assert rig.ready == ["0", "1", "2"]
        assert len(rig.gateway.known) == 3

    rig = play(tmp_path, 3, scenario)
    ports = {engine.port for engine in rig.engines}
    assert len(ports) == (4 if has_room else 3)  # the address that comes free is used again


def test_the_old_engine_gets_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        old = rig.address("0")
        rig.gateway.running[old] = 1
        task = asyncio.get_running_loop().create_task(rig.restart(1))
        await rig.until(lambda: rig.gateway.known[old].state is S.DRAINING)
        await rig.pass_time(20.0)
        assert rig.alive == ["new", "old"]
        assert rig.ready == ["0"]

        rig.gateway.running.clear()
        await rig.until(task.done)
        await task
        assert rig.alive == ["new"]
        assert old not in rig.gateway.known

    play(tmp_path, 1, scenario)


def test_after_drain_timeout_its_requests_are_cut(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.gateway.running[rig.address("0")] = 1
        began_at = asyncio.get_running_loop().time()
        await rig.restart(1, drain_seconds=40.0)

        assert asyncio.get_running_loop().time() - began_at == pytest.approx(40.0, abs=5.0)
        assert rig.engines[0].term_seconds == 3.0
        assert rig.alive == ["new"]

    play(tmp_path, 1, scenario)


def test_a_new_engine_that_fails_beside_the_old_one_leaves_it_untouched(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.broken = {"new"}
        with pytest.raises(UserError, match="so the old one stays: exit status 9"):
            await rig.restart(2)

        assert rig.alive == ["old", "old"]
        assert rig.ready == ["0", "1"]
        assert all(member.manager.log_file for member in rig.fleet.members)
        assert S.DRAINING not in {state for _, state in rig.gateway.seen}
        assert S.FAILED not in {state for _, state in rig.gateway.seen}

    assert len(play(tmp_path, 2, scenario).engines) == 3


def test_without_room_the_old_engine_is_started_again_if_the_new_one_fails(
    tmp_path: Path,
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.broken, rig.has_room = {"new"}, False
        with pytest.raises(UserError, match="the old one was started again: exit status 9"):
            await rig.restart(2)

        assert rig.alive == ["old", "old"]
        await rig.until(lambda: rig.ready == ["0", "1"])
        # A request that waits would be refused in any of these states.
        assert not {S.FAILED, S.STOPPED} & {state for _, state in rig.gateway.seen}

    play(tmp_path, 2, scenario)


def test_if_neither_comes_up_the_end_is_that_of_a_crash_loop(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.broken, rig.has_room = {"new", "old"}, False
        with pytest.raises(UserError, match="could not be started again either"):
            await rig.restart(1)

        assert await rig.running == 9

    play(tmp_path, 1, scenario, max_restarts=2)


def test_a_replica_that_was_given_up_gets_a_new_chance(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.engines[1].die(3)
        await rig.until(lambda: rig.ready == ["0"])
        await rig.restart(2)

        assert rig.ready == ["0", "1"]
        assert rig.alive == ["new", "new"]
        assert rig.engines[-1].port == rig.engines[1].port  # nothing runs beside it

    play(tmp_path, 2, scenario, max_restarts=0)


def test_replicas_that_sleep_stay_asleep_except_for_the_first_one(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: not rig.ready and not rig.alive)
        await rig.restart(3)
        assert rig.alive == ["new"]

        rig.gateway.wants_engine = True
        await rig.until(lambda: rig.ready == ["0", "1", "2"])
        assert rig.alive == ["new"] * 3
        rig.gateway.wants_engine = False

    play(tmp_path, 3, scenario, idle_stop=5.0)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_a_restart_can_change_the_number_of_replicas(
    tmp_path: Path, before: int, after: int
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.restart(after)

        assert rig.ready == [str(number) for number in range(after)]
        assert rig.alive == ["new"] * after
        assert len(rig.gateway.known) == after

    play(tmp_path, before, scenario)


# Prompts ------------------------------------------------------------------------------------------

KNOWN = tuple(range(300))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


async def converse(rig: Rig) -> None:
    """One conversation at the first replica, whose model is known by then."""
    await rig.pass_time(1.0)
    rig.slots("0").ask(0, KNOWN)
    rig.fleet.on_owners({rig.address("0"): ["ann:1"]})


def holds(rig: Rig, replica: str = "0") -> bool:
    return KNOWN in rig.slots(replica).held


def test_prompts_are_saved_before_an_idle_stop_and_restored_before_the_first_request(
    tmp_path: Path, box: Box
) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)
        await rig.until(lambda: not rig.alive)
        rig.gateway.wants_engine = True
        await rig.until(lambda: rig.ready == ["0"])
        rig.gateway.wants_engine = False

        assert holds(rig)
        status = rig.gateway.known[rig.address("0")]
        assert status.prompt_cache["restored"] == [len(KNOWN)]

    play(tmp_path, 1, scenario, box, idle_stop=5.0)


def test_a_stop_saves_the_prompts_of_every_engine(tmp_path: Path, box: Box) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)

    play(tmp_path, 2, scenario, box)
    assert [entry.tokens for entry in box.store.entries()] == [len(KNOWN)]


def test_a_stop_while_an_idle_engine_is_saved_loses_nothing(tmp_path: Path, box: Box) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)
        slots = rig.slots("0")
        slots.save_seconds = 3.0
        await rig.until(lambda: "save 0" in slots.calls)
        assert rig.alive

    play(tmp_path, 1, scenario, box, idle_stop=5.0)
    assert [entry.tokens for entry in box.store.entries()] == [len(KNOWN)]


def test_a_second_request_to_stop_does_not_wait_for_a_save(tmp_path: Path, box: Box) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)
        rig.is_stopping = True
        hurry = asyncio.Event()
        hurry.set()
        await rig.fleet.stop(hurry)
        await rig.running

    play(tmp_path, 1, scenario, box)
    assert not box.store.entries()


@pytest.mark.parametrize("has_room", [True, False])
def test_a_rolling_restart_hands_the_prompts_to_the_new_engine(
    tmp_path: Path, box: Box, has_room: bool
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.has_room = has_room
        await converse(rig)
        await rig.restart(1)

        assert rig.alive == ["new"]
        assert holds(rig)

    play(tmp_path, 1, scenario, box)


def test_every_replica_begins_with_all_conversations(tmp_path: Path, box: Box) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)
        await rig.restart(2)

        assert holds(rig, "1")

    play(tmp_path, 2, scenario, box)


def test_an_engine_that_is_restarted_after_a_crash_has_what_was_saved_at_a_quiet_moment(
    tmp_path: Path, box: Box
) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)
        rig.gateway.responses[rig.address("0")] = 1
        await rig.pass_time(10.0)
        rig.engines[0].die(9)
        await rig.until(lambda: not rig.ready)
        await rig.until(lambda: rig.ready == ["0"])

        assert holds(rig)

    play(tmp_path, 1, scenario, box)


def test_a_gateway_that_dies_leaves_what_it_did_not_report_unsaved(
    tmp_path: Path, box: Box
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.pass_time(1.0)
        rig.slots("0").ask(0, KNOWN)
        rig.fleet.on_owners(None)

    play(tmp_path, 1, scenario, box)
    assert not box.store.entries()


def test_an_engine_that_is_replaced_while_it_restores_loses_no_prompts(
    tmp_path: Path, box: Box
) -> None:
    async def scenario(rig: Rig) -> None:
        await converse(rig)
        rig.gateway.responses[rig.address("0")] = 1
        await rig.pass_time(10.0)
        box.restore_seconds = 3600.0
        rig.engines[0].die(9)
        await rig.until(lambda: rig.alive and "restore 0" in rig.slots("0").calls)
        box.restore_seconds = 0.0
        await rig.restart(1)

        assert holds(rig)

    play(tmp_path, 1, scenario, box)
