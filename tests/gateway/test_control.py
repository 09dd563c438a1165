"""What the gateway tells its supervisor, and when."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.activity import GREETING, OWNERS, Activity, ReplicaActivity
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway.control import OWNERS_PER_LINE, Control, is_comment
from llama_gguf.gateway.services import Services
from llama_gguf.values import replace
from tests.support.fakes import NewRig
from tests.support.messages import request

READY = EngineStatus(ChildState.READY, since=0.0, slots=3, revision=7)


class Supervisor:
    """The other end of the channel."""

    def __init__(self, services: Services, control: Control) -> None:
        self.services = services
        self.control = control
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def heard(self) -> Activity:
        return Activity.from_line(await self.reader.readline())

    def tell(self, status: EngineStatus) -> None:
        self.writer.write(status.to_line())


def run(folder: Path, scenario: Callable[[Supervisor], Awaitable[None]]) -> bool:
    """Run *scenario* beside a control; returns whether it was told that the other end has gone."""
    gone: list[bool] = []

    async def both() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        services = Services(
            Settings.of(log_dir=str(folder)),
            asyncio.get_running_loop(),
            lambda _address: lambda *_: None,
        )
        control = Control(services, theirs)
        supervisor = Supervisor(services, control)
        supervisor.reader, supervisor.writer = await asyncio.open_unix_connection(sock=ours)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(control.follow(lambda: gone.append(True)))
            assert await supervisor.reader.readline() == GREETING
            await scenario(supervisor)
            supervisor.writer.close()
        await supervisor.writer.wait_closed()

    asyncio.run(both())
    return gone == [True]


def test_it_takes_what_it_is_told_and_says_what_it_has_heard(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(READY)
        only = {"127.0.0.1:8080": ReplicaActivity(acknowledged_revision=7)}
        assert await supervisor.heard() == Activity(acknowledged_revision=7, replicas=only)
        assert supervisor.services.fleet.status == READY
        (replica,) = supervisor.services.fleet.replicas.values()
        assert replica.tracker.is_supervised

    assert run(tmp_path, scenario)


def test_a_tick_on_which_nothing_has_changed_says_nothing(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(READY)
        await supervisor.heard()
        for _ in range(10):
            supervisor.control.tick()
        supervisor.services.metrics.queue_waits.observe([0.1, 0.2])
        supervisor.control.tick()
        activity = await supervisor.heard()
        assert (activity.acknowledged_revision, activity.responses) == (7, 2)

    run(tmp_path, scenario)


def test_peers_are_not_supervised(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        peer = supervisor.services.fleet.add(EngineAddress("10.0.0.1", 8080), "10.0.0.1:8080")
        supervisor.tell(READY)
        await supervisor.heard()
        assert not peer.tracker.is_supervised
        assert supervisor.services.fleet.replicas["127.0.0.1:8080"].tracker.status == READY

    run(tmp_path, scenario)


def test_what_a_replica_has_responded_to_is_counted_for_it(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(READY)
        await supervisor.heard()
        supervisor.services.fleet.replicas["127.0.0.1:8080"].responses = 2
        supervisor.control.tick()
        assert (await supervisor.heard()).of("127.0.0.1:8080").responses == 2

    run(tmp_path, scenario)


def test_a_request_for_an_engine_that_is_asleep_is_told_at_once(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(EngineStatus(ChildState.ASLEEP, since=0.0, revision=8))
        await supervisor.heard()
        supervisor.services.fleet.require(may_wait=True)
        assert (await supervisor.heard()).engine_requested

    run(tmp_path, scenario)


def test_a_supervisor_that_does_not_listen_is_not_talked_to_for_ever(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20_000):
            supervisor.services.metrics.queue_waits.observe([0.1])
            supervisor.control.tick()
        writer = supervisor.control._writer
        assert writer is not None
        assert writer.transport.get_write_buffer_size() < 100_000
        supervisor.reader._transport.resume_reading()  # type: ignore[attr-defined]

    run(tmp_path, scenario)


def test_one_more_engine_is_needed_when_a_request_waits_and_every_slot_is_in_use(
    new_rig: NewRig,
) -> None:
    rig = new_rig(slots=2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        control = Control(rig.services, theirs)
        needed = []
        for _ in range(3):
            rig.send_request(request(body=b"{}"))
            needed.append(control.is_engine_needed)
        (replica,) = rig.fleet.replicas.values()
        # The request waits although a slot is free, as for the replica of its session.
        replica.slots.total = 3
        rig.fleet._balancer.changed(replica.slots)
        needed.append(control.is_engine_needed)
        rig.engine(ChildState.ASLEEP)
        needed.append(control.is_engine_needed)

    assert needed == [False, False, True, False, True]


# What has come back -------------------------------------------------------------------------------


def test_bytes_of_an_answer_are_a_move_and_silence_or_comments_are_none(new_rig: NewRig) -> None:
    rig = new_rig()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        control = Control(rig.services, theirs)

        def moves_after(data: bytes) -> int:
            if data:
                rig.upstreams[0].send(data)
            control.tick()
            return control._activity().data_ticks

        rig.send_request(request(body=b'{"stream":true}'))
        before = moves_after(b"")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        assert moves_after(head + b"Transfer-Encoding: chunked\r\n\r\n") == before + 1
        assert moves_after(b"9\r\ndata: 1\n\n\r\n") == before + 2
        assert moves_after(b"") == before + 2
        assert moves_after(b"3\r\n:\n\n\r\n") == before + 2
        assert moves_after(b"9\r\ndata: 2\n\n\r\n") == before + 3
        activity = control._activity()
        assert (activity.busy, activity.running, activity.responses) == (1, 1, 0)


@pytest.mark.parametrize(
    ("tail", "new_bytes", "verdict"),
    [
        (b"\n:\n\n", 8, True),
        (b":\n\n", 8, True),  # before the first event
        (b"\n:\n\n", 16, False),  # something came before it
        (b"a:\n\n", 8, False),
        (b" 1\n\n", 14, False),
        (b"", 8, False),
    ],
)
def test_only_a_comment_and_nothing_else_is_no_news(
    tail: bytes, new_bytes: int, verdict: bool
) -> None:
    assert is_comment(tail, new_bytes) == verdict


def test_answers_are_counted(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.respond_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    for _ in range(3):
        assert rig.send_request().response.status == 200

    assert rig.metrics.responses == 3


def test_what_one_replica_sends_is_no_sign_of_another(new_rig: NewRig) -> None:
    rig = new_rig()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        control = Control(rig.services, theirs)
        other = EngineStatus(ChildState.LOADING, 0.0, "1", "127.0.0.1:9999")
        rig.fleet.update(other)
        rig.send_request(request(body=b'{"stream":true}'))
        control.tick()
        before = control._activity()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        rig.upstreams[0].send(head + b"Transfer-Encoding: chunked\r\n\r\n")
        control.tick()
        after = control._activity()

        (serving,) = after.replicas.keys() - {other.address}
        assert after.of(serving).data_ticks == before.of(serving).data_ticks + 1
        assert after.of(other.address).data_ticks == before.of(other.address).data_ticks == 0
        assert after.of(serving).running == 1


def test_the_owners_of_requests_are_reported_before_the_activity_and_once(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(replace(READY, prompt_cache={"life": 1}))
        await supervisor.heard()
        (replica,) = supervisor.services.fleet.replicas.values()
        assert replica.owners == set()
        replica.owners.add("-")
        supervisor.services.metrics.queue_waits.observe([0.1])
        supervisor.control.tick()
        line = await supervisor.reader.readline()
        assert line == OWNERS + b'{"127.0.0.1:8080": ["-"]}\n'
        assert (await supervisor.heard()).responses == 1
        assert replica.owners == set()

    run(tmp_path, scenario)


def test_many_owners_are_reported_in_lines_that_a_supervisor_can_read(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(replace(READY, prompt_cache={"life": 1}))
        await supervisor.heard()
        (replica,) = supervisor.services.fleet.replicas.values()
        assert replica.owners is not None
        everyone = {f"{number:064}" for number in range(3 * OWNERS_PER_LINE)}
        replica.owners |= everyone
        supervisor.control.tick()
        reported: set[str] = set()
        while len(reported) < len(everyone):
            line = await supervisor.reader.readline()
            reported.update(*json.loads(line.removeprefix(OWNERS)).values())
        assert reported == everyone

    run(tmp_path, scenario)


def test_without_saved_prompts_owners_are_not_even_collected(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        supervisor.tell(READY)
        await supervisor.heard()
        (replica,) = supervisor.services.fleet.replicas.values()
        assert replica.owners is None

    run(tmp_path, scenario)
