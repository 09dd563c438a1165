"""Whatever happens in whatever order: what was held comes back, and keys pay what is due."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from llama_gguf.engines.status import ChildState
from llama_gguf.gateway.upstream_connection import Phase
from tests.support.fakes import FakeUpstream, Rig
from tests.support.keys import KEY, KEYS_TEXT, OTHER_KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, event, request

BODIES: Final = (b"{}", b'{"stream":true}')
STATES: Final = (
    *[ChildState.READY] * 5,
    *(ChildState(s) for s in ("loading", "backoff", "failed")),
)
KEY_FILES: Final = (KEYS_TEXT, f"alice:{KEY}\n", f"bob:{OTHER_KEY}\n", None)
TARGETS: Final = ("/v1/chat/completions", "/v1/messages", "/tokenize", "/reload")


class World:
    """A gateway, and what may happen to it. *which* picks among those there are."""

    def __init__(self, folder: Path, keepalive: float, **settings: Any) -> None:
        self.rig = Rig(
            folder,
            **settings,
            slots=2,
            max_queue_size=3,
            max_concurrent_per_key=4,
            max_queue_wait=8,
            request_timeout=12,
            max_requests_per_minute=40,
            max_body_memory=120,
            sse_keepalive=keepalive,
            auth_failures_per_minute=0,
        )

    def a_client_asks(self, which: int) -> None:
        body = BODIES[which % 2]
        key = (KEY, OTHER_KEY)[which // 2 % 2]
        target = TARGETS[which // 4 % len(TARGETS)]
        self.rig.send_request(request("POST", target, body=body, key=key))

    def a_client_sends_half_a_request(self, which: int) -> None:
        self.rig.send_request(request(body=b"x" * 15)[: -1 - which % 15])

    def a_client_asks_again(self, which: int) -> None:
        client = self.rig.clients[which % len(self.rig.clients)] if self.rig.clients else None
        if client is not None and not client.is_closed:
            client.send(request(body=BODIES[which % 2]))

    def a_client_leaves(self, which: int) -> None:
        if self.rig.clients:
            self.rig.clients[which % len(self.rig.clients)].disconnect()

    def a_client_stops_reading(self, which: int) -> None:
        if self.rig.clients:
            self.rig.clients[which % len(self.rig.clients)].stall()

    def a_client_reads_on(self, which: int) -> None:
        if self.rig.clients:
            self.rig.clients[which % len(self.rig.clients)].resume_reading()

    def _say(self, which: int, *pieces: bytes) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            upstream.send(*pieces)

    def _upstream(self, which: int) -> FakeUpstream | None:
        there = [u for u in self.rig.upstreams if not u.is_closed]
        if which < 24:  # mostly one that is asked for something
            there = [u for u in there if u.phase is not Phase.IDLE]
        return there[which % len(there)] if there else None

    def the_engine_answers(self, which: int) -> None:
        self._say(which, OK)

    def the_engine_refuses(self, which: int) -> None:
        body = b'{"error":{"message":"no"}}'
        self._say(which, b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def the_engine_begins_a_stream(self, which: int) -> None:
        self._say(which, STREAM_HEAD, event(which))

    def the_engine_goes_on(self, which: int) -> None:
        self._say(which, event(which))

    def the_engine_ends_a_stream(self, which: int) -> None:
        self._say(which, LAST_CHUNK)

    def the_engine_hangs_up(self, which: int) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            upstream.close()

    def the_engine_cuts(self, which: int) -> None:
        upstream = self._upstream(which)
        if upstream is not None:
            upstream.reset()

    def the_engine_changes(self, which: int) -> None:
        self.rig.engine(STATES[which % len(STATES)], slots=1 + which // 8 % 3)

    def the_engine_accepts_nobody(self, which: int) -> None:
        self.rig.accepts = bool(which % 2)

    def keys_change(self, which: int) -> None:
        self.rig.set_keys(KEY_FILES[which % len(KEY_FILES)])
        client = self.rig.client()
        client.send(request("POST", "/reload", key=(KEY, OTHER_KEY)[which // 4 % 2]))

    def time_passes(self, which: int) -> None:
        self.rig.advance((0.5, 3, 9, 30)[which % 4])

    def everything_ends(self) -> None:
        """Clients and engine leave; what they held has to be there again."""
        for client in self.rig.clients:
            client.resume_reading()
            client.disconnect()
        for dial in self.rig.dials:
            dial.cancel()
        self.rig.spin()
        for upstream in self.rig.upstreams:
            upstream.reset()


MOST_SLOTS: Final = 4
EVENTS: Final = [name for name in vars(World) if re.match("(a|the|keys|time)_", name)]


def used_by(rig: Rig, key_id: str) -> int:
    principal = rig.services.authenticator.named(key_id)
    assert principal is not None
    assert principal.limiter is not None
    return principal.limiter.limit - principal.limiter.remaining(rig.clock.now)


def owed_by(rig: Rig, key_id: str) -> int:
    """Its requests that went to the engine, or would have but that their clients left."""
    return sum(
        record.key_id == key_id
        and record.request.route.needs_slot
        and (
            record.forwarded_at > 0
            or record.replays > 0
            or record.outcome.startswith("client_left")
        )
        for record in rig.records
    )


CALM: Final = [n for n in EVENTS if n not in ("keys_change", "the_engine_changes", "time_passes")]
USUAL: Final = ["a_client_asks"] * len(CALM) + ["the_engine_begins_a_stream"] * 5


@pytest.mark.parametrize("keepalive", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(30))
def test_nothing_leaks_in_any_order_of_events(seed: int, keepalive: float, tmp_path: Path) -> None:
    choose = random.Random(seed)
    world = World(tmp_path, keepalive)
    with closing(world.rig) as rig:
        admission = rig.fleet.admission
        for _ in range(200):
            happen: Callable[[int], None] = getattr(world, choose.choice(USUAL + CALM + EVENTS))
            happen(choose.randrange(32))
            assert admission.queued <= 3 + MOST_SLOTS, "what had a slot may wait in any case"
            assert rig.services.body_memory.used <= 120
        world.everything_ends()

        assert rig.is_at_rest
        assert all(record.status for record in rig.records)


@pytest.mark.parametrize("seed", range(30))
def test_a_key_pays_for_what_was_sent_to_the_engine_and_for_nothing_else(
    seed: int, tmp_path: Path
) -> None:
    choose = random.Random(seed)
    world = World(tmp_path, keepalive=2.0)
    with closing(world.rig) as rig:
        began = rig.clock.now
        while rig.clock.now < began + 40:  # nothing has left a window by then
            for _ in range(10):
                happen: Callable[[int], None] = getattr(world, choose.choice(USUAL + CALM))
                happen(choose.randrange(32))
                slots = rig.fleet.admission.slots
                assert rig.fleet.admission.running <= slots or not rig.replica.tracker.is_ready
            rig.advance(choose.choice((0.5, 3, 9)))
        world.everything_ends()

        assert {key_id: used_by(rig, key_id) for key_id in ("alice", "bob")} == {
            key_id: owed_by(rig, key_id) for key_id in ("alice", "bob")
        }
