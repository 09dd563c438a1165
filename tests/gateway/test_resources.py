"""What hostile clients hold is bounded, and released in any order of events.

``World`` has the events of ordinary clients and engines; those of hostile clients are added here.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access.key_store import REST_SECONDS
from llama_gguf.engines.status import ChildState
from llama_gguf.gateway.client_connection import MAX_HELD_BYTES, ClientConnection
from llama_gguf.gateway.proxied_request import ProxiedRequest
from llama_gguf.net.transport import HIGH_WATER_BYTES
from llama_gguf.scheduling.exchange import State
from llama_gguf.scheduling.replay_order import ReplayOrder
from tests.gateway.test_client_orders import EVENTS, World
from tests.support.fakes import FakeClient, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import request

CHAT: Final = "/v1/chat/completions"
BODY_MEMORY: Final = 120
"""As ``World`` has it."""
LARGEST_BODY: Final = 70
LENGTHS: Final = (0, 1, 15, LARGEST_BODY - 1, LARGEST_BODY, LARGEST_BODY + 1, 10**9)
OWN: Final = ("/dashboard/main.js", "/health", "/metrics", "/ping")
AHEAD: Final = 40
"""Pipelined requests; the responses to those for the largest file have half a megabyte."""
LONGEST_ANSWER: Final = 40_000
LONGEST_PIECE: Final = 8_000
"""Bytes in one read."""
LONGEST_SECONDS: Final = 300.0
"""Longer than all timeouts together."""
PIECES: Final = (
    b"POST /v1/chat/compl",
    b"x",
    b"x" * 100,
    b"5\r\nab",
    b"cde\r\n0\r\n\r\n",
    b"\r\n\r\n",
    b"\r\n" * 50,
    b"\x16\x03\x01\0",
)


def head(
    length: int, key: str | None, *fields: str, path: str = CHAT, method: str = "POST"
) -> bytes:
    """A request that declares a body of *length* bytes, without the body."""
    return request(method, path, *fields, f"Content-Length: {length}", key=key)


class HostileWorld(World):
    """With hostile clients."""

    def __init__(self, folder: Path, keepalive: float) -> None:
        super().__init__(
            folder,
            keepalive,
            web_ui=True,
            max_request_body_size=LARGEST_BODY,
            max_connections=12,
        )

    def _one(self, which: int) -> FakeClient:
        """An open connection, or a new one."""
        there = [c for c in self.rig.clients if not c.is_closed]
        return there[which % len(there)] if there else self.rig.client()

    def _key(self, which: int) -> str | None:
        return (KEY, OTHER_KEY, "sk-wrong-0123456789", None)[which // 8]

    def nothing_happens(self, which: int) -> None:
        """Fills the steps of a failing example that do not matter."""

    def hostile_client_connects(self, which: int) -> None:
        del which
        self.rig.client()

    def hostile_client_sends_a_head_alone(self, which: int) -> None:
        self._one(which).send(head(LENGTHS[which % len(LENGTHS)], self._key(which)))

    def hostile_client_repeats_a_head_with_another_length(self, which: int) -> None:
        client = self._one(which)
        for n in (0, which):
            client.send(head(LENGTHS[n % len(LENGTHS)], KEY, path=("/tokenize", CHAT)[which % 2]))

    def hostile_client_sends_a_body_to_a_public_path(self, which: int) -> None:
        client = self._one(which)
        for length in (0, LENGTHS[which % len(LENGTHS)]):
            client.send(head(length, None, path="/", method="GET"))

    def hostile_client_sends_any_piece(self, which: int) -> None:
        self._one(which).send(PIECES[which % len(PIECES)])

    def hostile_client_begins_chunks(self, which: int) -> None:
        self._one(which).send(request("POST", CHAT, "Transfer-Encoding: chunked", key=KEY))

    def hostile_client_waits_for_100(self, which: int) -> None:
        length = LENGTHS[which % len(LENGTHS)]
        self._one(which).send(head(length, self._key(which), "Expect: 100-continue"))

    def hostile_client_asks_ahead(self, which: int) -> None:
        path = OWN[which % len(OWN)]
        self._one(which).send(request("GET", path, key=None) * AHEAD)

    def hostile_client_asks_the_engine_ahead(self, which: int) -> None:
        one = request("POST", CHAT, body=b"{}", key=self._key(which))
        self._one(which).send(one * AHEAD)

    def hostile_client_resets(self, which: int) -> None:
        self._one(which).reset()

    def the_engine_dies_before_it_accepts(self, which: int) -> None:
        dials = [d for d in self.rig.dials if not d.is_over]
        if dials:
            dials[which % len(dials)].refuse()
            self.rig.spin()

    def the_gateway_drains(self, which: int) -> None:
        """The first step of ``Gateway._drain``."""
        del which
        self.rig.services.connections.drain()
        self.rig.spin()


HOSTILE: Final = [name for name in vars(HostileWorld) if re.match("(hostile|the)_", name)]
STEPS: Final = st.lists(
    st.tuples(st.sampled_from(["nothing_happens", *HOSTILE, *EVENTS]), st.integers(0, 31)),
    min_size=30,  # without it, most lists are too short to find anything
    max_size=80,
)


# What must hold after each step -------------------------------------------------------------------


def open_ones(rig: Rig) -> list[ClientConnection]:
    return [c for c in rig.services.connections if isinstance(c, ClientConnection)]


def what_is_counted_is_what_the_exchanges_hold(rig: Rig) -> None:
    services = rig.services
    exchanges = [c._exchange for c in open_ones(rig) if c._exchange is not None]
    proxied = [c._request for c in open_ones(rig) if c._request is not None]
    both = (services.fleet.admission, services.fleet.side_admission)
    by_key: Counter[str] = Counter()
    for exchange in exchanges:
        by_key[exchange.key_id] += exchange.reserved_bytes

    for admission in both:
        assert admission.queued == sum(p._queue is admission for p in proxied)
    in_use = sum(p._attempt is not None for p in proxied) + len(rig.replica.pool._abandoned)
    assert sum(admission.running for admission in both) == in_use
    waiting = [p for p in proxied if p._exchange.state in (State.QUEUED, State.AHEAD_QUEUED)]
    order = services.fleet.replay_order
    assert waiting == [p for p in proxied if p._queue is not None or is_in(p, order)]
    assert services.body_memory.used == by_key.total()


def is_in(request: ProxiedRequest, order: ReplayOrder) -> bool:
    """Whether it waits for its turn, or has it and waits for the engine to respond."""
    return request._attempt is None and (request is order.first or request in order._waiting)


def bodies_are_within_their_memory_and_need_a_key(rig: Rig) -> None:
    assert rig.services.body_memory.used <= BODY_MEMORY
    without_key = [c._exchange for c in open_ones(rig) if c._exchange and c._exchange.key_id == "-"]
    assert not any(exchange.reserved_bytes for exchange in without_key)


def what_is_sent_ahead_is_bounded(rig: Rig) -> None:
    for connection in open_ones(rig):
        assert len(connection._received) <= MAX_HELD_BYTES + LONGEST_PIECE


def what_is_not_read_is_bounded(rig: Rig) -> None:
    for client in rig.clients:
        assert client.transport.unsent <= HIGH_WATER_BYTES + LONGEST_ANSWER


ALWAYS: Final = (
    what_is_counted_is_what_the_exchanges_hold,
    bodies_are_within_their_memory_and_need_a_key,
    what_is_sent_ahead_is_bounded,
    what_is_not_read_is_bounded,
)


def check_that_nothing_is_abandoned(rig: Rig) -> None:
    services = rig.services

    assert rig.is_at_rest
    for admission in (services.fleet.admission, services.fleet.side_admission):
        assert not list(admission.waiting())
    assert not services.connections
    assert not rig.replica.pool.connecting
    assert not rig.replica.pool._abandoned
    assert services.connections.idle.is_set() or not services.connections.is_draining
    rig.advance(2 * REST_SECONDS)  # one reload for all may be due, and one after it
    assert not asyncio.all_tasks(rig.loop)


Steps = list[tuple[str, int]]


@contextmanager
def after(steps: Steps, keepalive: float, holds: Callable[[Rig], None]) -> Iterator[HostileWorld]:
    """A world after *steps*, with *holds* checked after each."""
    with tempfile.TemporaryDirectory() as folder:
        world = HostileWorld(Path(folder), keepalive)
        with closing(world.rig):
            for name, which in steps:
                happen: Callable[[int], None] = getattr(world, name)
                happen(which)
                holds(world.rig)
            yield world


@pytest.mark.slow
@pytest.mark.parametrize("holds", ALWAYS, ids=lambda check: check.__name__)
@given(steps=STEPS, keepalive=st.sampled_from((0.0, 2.0)))
def test_what_hostile_clients_held_is_released_when_they_leave(
    holds: Callable[[Rig], None], steps: Steps, keepalive: float
) -> None:
    with after(steps, keepalive, holds) as world:
        world.everything_ends()
        world.rig.spin()

        check_that_nothing_is_abandoned(world.rig)


@pytest.mark.slow
@given(steps=STEPS, keepalive=st.sampled_from((0.0, 2.0)))
def test_what_hostile_clients_held_is_released_in_time_when_they_stay(
    steps: Steps, keepalive: float
) -> None:
    with after(steps, keepalive, what_is_counted_is_what_the_exchanges_hold) as world:
        # Otherwise each of many pipelined requests may wait for it, in turn.
        world.rig.engine(ChildState.FAILED)
        world.rig.advance(LONGEST_SECONDS)

        check_that_nothing_is_abandoned(world.rig)
