from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import cast

import pytest

from llama_gguf_bench.connection import ConnectionLost
from llama_gguf_bench.load import Sender
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.overhead import Turns, added, as_json, take_turns
from tests.bench.test_load import Clock, Server, bodies
from tests.support import virtual_time


def turns(
    gateway: Callable[[Clock], Server],
    *,
    streams: int = 2,
    stop_at: float = 0,
    requests: int | None = None,
) -> tuple[Turns, dict[str, Server]]:
    """Blocks with a server that takes half a second, and with *gateway*, in virtual time."""
    options = Options(loads=(Load(streams=streams),), duration=30.0, requests=requests)

    async def scenario(now: Clock) -> tuple[Turns, dict[str, Server]]:
        servers = {"direct": Server(now), "gateway": gateway(now)}
        senders = {side: Sender(s, options, {}, now=now) for side, s in servers.items()}
        if stop_at:
            task = cast(asyncio.Task[None], asyncio.current_task())
            asyncio.get_running_loop().call_later(stop_at, task.cancel)
        found = await take_turns(streams, options, senders, bodies(), rng=random.Random(1), now=now)
        return found, servers

    return virtual_time.run(scenario)


def test_the_difference_is_what_the_gateway_adds() -> None:
    found, _ = turns(lambda now: Server(now, ttft=0.6, gap=0.26))

    measures = added(found.pairs, random.Random(1))

    assert measures["ttft"].median.value == pytest.approx(0.1)
    assert measures["tpot"].mean.value == pytest.approx(0.01)
    assert measures["latency"].median.value == pytest.approx(0.12)
    assert measures["ttft"].direct == pytest.approx(0.5)
    assert measures["ttft"].gateway == pytest.approx(0.6)


def test_both_sides_get_the_same_number_of_requests_and_never_at_once() -> None:
    found, servers = turns(Server, streams=3, requests=10)

    assert len(found.pairs) == 10
    assert len(servers["direct"].bodies) == len(servers["gateway"].bodies) == 3 * (10 + 1)
    assert servers["direct"].most == servers["gateway"].most == 3


def test_no_prompt_is_sent_to_both_sides() -> None:
    _, servers = turns(Server, requests=5)

    sent = [body["prompt"] for server in servers.values() for body in server.bodies]
    assert len(set(sent)) == len(sent)


def test_the_order_within_a_block_is_random() -> None:
    _, servers = turns(Server, streams=1, requests=20)

    firsts = [
        int(str(a["prompt"])) < int(str(b["prompt"]))
        for a, b in zip(servers["direct"].bodies, servers["gateway"].bodies, strict=True)
    ]
    assert 5 < sum(firsts) < 16


def test_drift_affects_both_sides_and_cancels_out() -> None:
    """A machine that becomes slower every second, and a gateway that adds 10 ms."""

    class Drifting(Server):
        async def exchange(self, *arguments: object) -> None:
            self.ttft = 0.5 + self.extra + self.now() / 50
            await super().exchange(*arguments)  # type: ignore[arg-type]

        extra = 0.0

    class Slower(Drifting):
        extra = 0.010

    options = Options(loads=(), requests=60)

    async def scenario(now: Clock) -> Turns:
        senders = {
            "direct": Sender(Drifting(now), options, {}, now=now),
            "gateway": Sender(Slower(now), options, {}, now=now),
        }
        return await take_turns(1, options, senders, bodies(), rng=random.Random(1), now=now)

    measure = added(virtual_time.run(scenario).pairs, random.Random(1))["ttft"]

    assert measure.mean.low is not None
    assert measure.mean.high is not None
    assert measure.mean.low < 0.010 < measure.mean.high


def test_blocks_with_a_failure_are_excluded_and_reported() -> None:
    found, _ = turns(lambda now: Server(now, fails=ConnectionLost("connection lost")), requests=3)

    assert found.pairs == []
    assert found.failed > 0
    assert found.errors == ["gateway: connection lost"]
    assert added(found.pairs, random.Random(1)) == {}


def test_a_failed_request_is_followed_by_a_pause() -> None:
    found, _ = turns(lambda now: Server(now, fails=ConnectionLost("connection lost")))

    assert found.failed == 2 * 30 / (1.0 + 0.5)  # a second for the other side, and the pause


def test_interrupted_turns_return_their_results_so_far() -> None:
    found, _ = turns(Server, stop_at=7.1)

    assert found.interrupted
    assert len(found.pairs) == 2


def test_the_file_has_every_pair_and_both_intervals() -> None:
    found, _ = turns(lambda now: Server(now, ttft=0.6), requests=8)

    document = json.loads(json.dumps(as_json(found, added(found.pairs, random.Random(1)))))

    assert document["blocks"] == len(document["pairs"]) == 8
    assert document["added"]["ttft_seconds"]["median_difference"]["low"] == pytest.approx(0.1)
