from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Iterator

import pytest

from llama_gguf_bench.connection import ConnectionLost, Sink, Target, parse_target
from llama_gguf_bench.load import Budget, Level, Sender, run_level
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.records import INTERRUPTED, Record
from tests.support import virtual_time
from tests.support.engines import sse, text_event

Clock = Callable[[], float]


class Server:
    """Responds in virtual time: the first token after *ttft*, two more after *gap* each.

    Args:
        now: the virtual clock.
        slots: the number of concurrent responses; other requests wait.
        stall: the beginning and end of a time without any progress.
        fails: the error of every request, instead of a response.
    """

    sent_again = 0
    target: Target = parse_target("http://127.0.0.1:1")

    def __init__(
        self,
        now: Clock,
        *,
        ttft: float = 0.5,
        gap: float = 0.25,
        slots: int = 64,
        stall: tuple[float, float] = (0, 0),
        fails: Exception | None = None,
    ) -> None:
        self.now, self.ttft, self.gap = now, ttft, gap
        self.places = asyncio.Semaphore(slots)
        self.stall = stall
        self.fails = fails
        self.under_way = 0
        self.most = 0
        self.bodies: list[dict[str, object]] = []

    async def exchange(
        self, request: bytes, sink: Sink, on_connected: Callable[[float], None]
    ) -> None:
        self.bodies.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        if self.fails:
            raise self.fails
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        on_connected(self.now())
        async with self.places:
            begin, end = self.stall
            if begin <= self.now() < end:
                await asyncio.sleep(end - self.now())
            await asyncio.sleep(self.ttft)
            sink.begin(200)
            for pause in (0, self.gap, self.gap):
                await asyncio.sleep(pause)
                sink.feed(text_event("x"), self.now())
            sink.feed(sse("[DONE]"), self.now())
            sink.end(self.now())
        self.under_way -= 1


def bodies() -> Iterator[dict[str, object]]:
    return ({"prompt": str(n)} for n in itertools.count())


def run(
    load: Load, make: Callable[[Clock], Server] = Server, *, stop_at: float = 0, **asked: object
) -> tuple[Level, Server]:
    """One level in virtual time; *stop_at* is the time of Ctrl-C."""
    options = Options(loads=(load,), **{"warmup": 0.0, **asked})  # type: ignore[arg-type]

    async def scenario(now: Clock) -> tuple[Level, Server]:
        server = make(now)
        if stop_at:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(stop_at, task.cancel)
        level = await run_level(
            load, options, server, fixed={"model": "m"}, bodies=bodies(),
            rng=random.Random(1), now=now,
        )  # fmt: skip
        return level, server

    return virtual_time.run(scenario)


def test_the_number_of_concurrent_streams_is_constant() -> None:
    level, server = run(Load(streams=3), duration=10.0)

    assert server.most == 3
    assert len(level.records) == 3 * 10
    assert (level.begin, level.end) == (0.0, 10.0)


def test_every_request_has_its_own_prompt_and_the_common_members() -> None:
    _, server = run(Load(streams=2), requests=4)

    assert [body["prompt"] for body in server.bodies] == ["0", "1", "2", "3"]
    assert {body["model"] for body in server.bodies} == {"m"}


def test_a_record_has_the_times_of_the_response() -> None:
    level, _ = run(Load(streams=1), requests=2)

    second = level.records[1]
    assert (second.intended, second.first, second.ended) == (1.0, 1.5, 2.0)
    assert list(second.gaps) == [0.25, 0.25]
    assert second.connected == 1.0


def test_requests_that_begin_in_the_warm_up_do_not_count() -> None:
    level, _ = run(Load(streams=1), warmup=2.5, duration=5.0)

    assert [record.intended for record in level.counted] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert (level.begin, level.end) == (2.5, 7.5)
    assert len(level.records) == 8


def test_a_number_of_requests_is_counted_after_the_warm_up() -> None:
    level, _ = run(Load(streams=2), warmup=1.5, requests=6)

    assert len(level.counted) == 6
    assert level.end == 5.0


def test_responses_longer_than_the_duration_count_once_per_stream() -> None:
    level, _ = run(Load(streams=2), lambda now: Server(now, ttft=100), warmup=1.0, duration=10.0)

    assert len(level.counted) == 2
    assert level.end == 100.5


def test_arrivals_keep_their_rate_with_a_server_of_any_speed() -> None:
    level, server = run(Load(rate=5), lambda now: Server(now, ttft=30), warmup=0.0, duration=100.0)

    assert len(level.records) == pytest.approx(500, rel=0.15)
    assert server.most > 100


def test_a_stall_is_visible_in_the_latencies_of_an_open_loop() -> None:
    """One slot and a stall of ten seconds: all requests that arrive then have high latencies."""
    level, _ = run(
        Load(rate=1),
        lambda now: Server(now, ttft=0.1, gap=0.0, slots=1, stall=(20, 30)),
        warmup=0.0,
        duration=60.0,
    )

    hit = [r for r in level.records if 20 <= r.intended < 29.5]
    assert len(hit) > 3
    for record in hit:
        assert record.latency is not None
        assert record.latency >= 30 - record.intended


def test_latency_counts_from_the_intended_time_if_the_generator_is_late() -> None:
    async def scenario(now: Clock) -> Record:
        sender = Sender(Server(now), Options(loads=()), {}, now=now)
        await asyncio.sleep(2.0)
        return await sender.send({}, [], intended=1.0)

    record = virtual_time.run(scenario)

    assert (record.started, record.ttft, record.latency) == (2.0, 1.5, 2.0)


def test_the_seed_determines_the_arrival_times() -> None:
    first, _ = run(Load(rate=2), duration=20.0)
    second, _ = run(Load(rate=2), duration=20.0)

    assert [r.intended for r in first.records] == [r.intended for r in second.records]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ConnectionLost("connection lost"), "connection lost"),
        (ConnectionRefusedError(), "no connection: ConnectionRefusedError"),
    ],
)
def test_failures_are_recorded_by_kind_and_followed_by_a_pause(
    failure: Exception, kind: str
) -> None:
    level, _ = run(Load(streams=1), lambda now: Server(now, fails=failure), duration=5.0)

    assert {record.error for record in level.records} == {kind}
    assert len(level.records) == 10


def test_a_late_response_is_a_timeout() -> None:
    level, server = run(Load(streams=1), lambda now: Server(now, ttft=100), requests=1, timeout=5.0)

    assert [record.error for record in level.records] == ["timeout"]
    assert server.most == 1


@pytest.mark.parametrize("load", [Load(streams=2), Load(rate=4)])
def test_an_interrupted_level_returns_its_results_so_far(load: Load) -> None:
    level, _ = run(load, stop_at=4.6, duration=60.0)

    assert level.interrupted
    assert level.end == pytest.approx(4.6)
    assert len(level.counted) > 3
    cut = [record for record in level.records if record.error == INTERRUPTED]
    assert cut
    assert not set(map(id, cut)) & set(map(id, level.counted))


def test_progress_goes_from_0_to_1() -> None:
    budget = Budget(Options(loads=(), duration=10.0, warmup=2.0), 100.0, minimum=1)

    assert [budget.done_share(now) for now in (100, 103, 106, 112, 120)] == [0, 0.25, 0.5, 1, 1]

    counted = Budget(Options(loads=(), requests=4, warmup=0.0), 0.0, minimum=1)
    counted.may_begin(0.0)
    assert counted.done_share(0.0) == 0.25
