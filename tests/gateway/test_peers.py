from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Finding, Probe
from llama_gguf.engines.roster import Roster
from llama_gguf.engines.source import PeerSource
from llama_gguf.engines.status import ChildState
from llama_gguf.gateway.peers import Peers
from tests.support.fakes import Rig
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, chunk, event, request

A, B = (EngineAddress("10.0.0.1", port) for port in (1, 2))


class Source:
    """Whose addresses the test sets."""

    def __init__(self) -> None:
        self.addresses: tuple[EngineAddress, ...] = (A,)
        self.on_change: Callable[[], None] = lambda: None
        self.absence: Roster | None = None

    async def follow(self) -> None:
        """The test changes it."""

    def wake(self) -> None:
        """The test has no engine to start."""


class FakeProbe(Probe):
    def __init__(self, address: EngineAddress) -> None:
        super().__init__(address)
        self.finding = Finding(ChildState.READY, 2, "m", request_tokens=4096, is_gateway=True)

    async def look(self) -> Finding:
        return self.finding


class Place:
    def __init__(self, rig: Rig, source: PeerSource | None = None) -> None:
        self.rig = rig
        self.source = Source()
        self._names = source
        self.tasks: list[asyncio.Task[None]] = []
        self.peers = Peers(rig.fleet, source or self.source, probe_of=FakeProbe, start=self._start)
        self._start(self.peers.follow(), "follow")
        rig.spin()

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        del name
        self.tasks.append(self.rig.loop.create_task(coroutine))
        return self.tasks[-1]

    def have(self, *addresses: EngineAddress) -> None:
        self.source.addresses = addresses
        self.source.on_change()
        self.rig.spin()

    def resolve(self) -> None:
        """Look up the name again."""
        assert self._names is not None
        self._start(self._names.resolve(NAME), "resolve")
        self.rig.spin()

    @property
    def labels(self) -> list[str]:
        return [label for label in self.rig.fleet.replicas if label.startswith("10.")]


@pytest.fixture
def place(rig: Rig) -> Place:
    return Place(rig)


def test_a_peer_is_probed_and_serves_with_the_slots_it_reports(place: Place) -> None:
    replica = place.rig.fleet.replicas[A.key]

    assert (replica.label, replica.slots.total, replica.is_gateway) == (A.key, 2, True)
    assert replica.tracker.status.request_tokens == 4096


def test_peers_come_and_go_with_their_source(place: Place) -> None:
    place.have(A, B)
    assert place.labels == [A.key, B.key]
    place.have(B)

    assert place.labels == [B.key]
    assert [task.cancelled() for task in place.tasks].count(True) == 1


def test_one_that_leaves_with_a_request_is_drained_and_may_come_back(place: Place) -> None:
    replica = place.rig.fleet.replicas[A.key]
    replica.slots.in_use += 1
    place.have()
    assert place.labels == [A.key]
    assert replica.slots.total == 0
    place.have(A)

    assert place.rig.fleet.replicas[A.key] is replica
    assert replica.slots.total == 2
    replica.slots.in_use -= 1


def test_without_an_engine_the_status_is_what_the_source_knows(place: Place) -> None:
    for key in [key for key in place.rig.fleet.replicas if key != A.key]:
        place.rig.fleet.remove(key)
    place.source.absence = Roster(2, (), ChildState.ASLEEP, "The next request starts an engine.")
    place.have()

    assert place.rig.fleet.status.state is ChildState.ASLEEP
    assert place.rig.fleet.status.detail == "The next request starts an engine."


NAME = "dns+http://engines.example:8080"


def test_a_stream_outlives_the_address_of_its_engine(rig: Rig) -> None:
    """The name has other addresses while the stream runs."""
    hosts = ["10.0.0.1"]

    async def look_up(name: str, port: int) -> Sequence[str]:
        assert (name, port) == ("engines.example", 8080)
        return hosts

    rig.engine(ChildState.FAILED)
    source = PeerSource([NAME], look_up=look_up)
    place = Place(rig, source)
    client = rig.send_request(request(body=b'{"stream":true}'))
    rig.upstream.send(STREAM_HEAD, chunk(event(1)))
    hosts[:] = ["10.0.0.2"]
    place.resolve()
    assert place.labels == ["10.0.0.1:8080", "10.0.0.2:8080"]
    other = rig.send_request()
    rig.upstream.send(OK)
    rig.upstreams[0].send(chunk(event(2)), LAST_CHUNK)
    rig.advance(1)

    assert other.response.status == 200
    assert client.response.body.endswith(event(2))
    assert place.labels == ["10.0.0.2:8080"]
    assert [b"Host: engines.example:8080" in head for head in rig.requests] == [True, True]
