"""Sends the load: concurrent streams (closed loop) or random arrivals (open loop).

A request of the open loop has a moment when it should be sent, drawn beforehand, and its
latencies count from that moment: a server that stalls cannot make the load wait for it and
so hide the stall (coordinated omission).

A level has a warm-up, then a window. Requests that were begun before the window warm up; what
they still do in the window counts as throughput, not as latency.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

from llama_gguf_bench.answers import Answer
from llama_gguf_bench.connection import Clock, ConnectionLost, Sink, Target
from llama_gguf_bench.lag import Generator, LagMeter
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.prompts import Body
from llama_gguf_bench.records import INTERRUPTED, Record

PAUSE_AFTER_ERROR_SECONDS: Final = 0.5
"""A server that refuses at once would otherwise be asked thousands of times a second."""

clock: Final[Clock] = time.perf_counter


class Exchanging(Protocol):
    """What a load is sent through: ``Connections``."""

    sent_again: int

    @property
    def target(self) -> Target: ...

    async def exchange(
        self, request: bytes, sink: Sink, on_connected: Callable[[float], None]
    ) -> None: ...


@dataclass(slots=True)
class Level:
    """What one level of load gave. Moments count from its beginning."""

    load: Load
    records: list[Record] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    """The window: what is begun in it is counted."""
    interrupted: bool = False
    generator: Generator = field(default_factory=Generator)
    sent_again: int = 0
    server: dict[str, Any] = field(default_factory=dict)
    """What the server told about itself meanwhile."""

    @property
    def counted(self) -> list[Record]:
        """Requests of the window, in order of time. Those cut off by Ctrl-C are not among them."""
        return [r for r in self.records if r.intended >= self.begin and r.error != INTERRUPTED]


class Asker:
    """Sends one request after another and writes down what became of each.

    Args:
        connections: where to.
        options: what every request has alike.
        fixed: fields of every body: model, max_tokens and so on.
        now: the clock that intended moments are on, and the connections'.
    """

    def __init__(
        self,
        connections: Exchanging,
        options: Options,
        fixed: Mapping[str, Any],
        *,
        now: Clock = clock,
    ) -> None:
        self._connections = connections
        self.now = now
        self._options = options
        self._fixed = fixed

    async def ask(self, body: Body, records: list[Record], *, intended: float) -> Record:
        """Send *body*; the record is in *records* however it ends."""
        options = self._options
        request = self._connections.target.request(
            "POST", options.path, json.dumps({**self._fixed, **body}).encode()
        )
        record = Record(intended, self.now(), streamed=options.streamed)
        answer = Answer(record, streamed=options.streamed)
        try:
            async with asyncio.timeout(options.timeout):
                await self._connections.exchange(request, answer, _noting(record))
        except TimeoutError:
            record.error = "timeout"
        except ConnectionLost as error:
            record.error = str(error)
        except OSError as error:
            record.error = f"no connection: {type(error).__name__}"
        except asyncio.CancelledError:
            record.error = INTERRUPTED
            raise
        finally:
            if not answer.done:
                answer.count_events()
            records.append(record)
        return record


def _noting(record: Record) -> Callable[[float], None]:
    def note(now: float) -> None:
        record.connected = now

    return note


class Budget:
    """Decides whether another request may begin.

    1. In the warm-up: yes.
    2. With a number of requests: until so many were begun after it.
    3. Else until the duration is over, but at least *minimum* requests: where an answer takes
       longer than the whole duration, every stream still has one that counts.
    """

    def __init__(self, options: Options, begin: float, *, minimum: int) -> None:
        self.window_begin = begin + options.warmup
        self.window_end = self.window_begin + options.duration
        self._wanted = options.requests
        self._minimum = minimum
        self.begun = 0

    def may_begin(self, moment: float) -> bool:
        if moment < self.window_begin:
            return True
        if self._wanted is not None:
            may = self.begun < self._wanted
        else:
            may = moment < self.window_end or self.begun < self._minimum
        self.begun += may
        return may

    def done_share(self, now: float) -> float:
        """How much of the level is over, 0 to 1."""
        if self._wanted is not None:
            return min(1.0, self.begun / self._wanted)
        whole = self.window_end - self.window_begin
        return min(1.0, max(0.0, (now - self.window_begin) / whole)) if whole > 0 else 1.0


async def closed_loop(
    asker: Asker, bodies: Iterator[Body], budget: Budget, *, streams: int, records: list[Record]
) -> None:
    """Keep *streams* requests under way until *budget* is used up."""

    async def stream() -> None:
        while budget.may_begin(now := asker.now()):
            record = await asker.ask(next(bodies), records, intended=now)
            if record.error:
                await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream())


async def open_loop(
    asker: Asker,
    bodies: Iterator[Body],
    budget: Budget,
    *,
    rate: float,
    rng: random.Random,
    records: list[Record],
) -> None:
    """Send requests at random moments, *rate* a second on average, whatever became of the last."""
    due = asker.now()
    async with asyncio.TaskGroup() as group:
        while budget.may_begin(due := due + rng.expovariate(rate)):
            await asyncio.sleep(due - asker.now())
            group.create_task(asker.ask(next(bodies), records, intended=due))


async def run_level(
    load: Load,
    options: Options,
    connections: Exchanging,
    *,
    fixed: Mapping[str, Any],
    bodies: Iterator[Body],
    progress: Callable[[Budget, Level], None] = lambda budget, level: None,
    rng: random.Random,
    now: Clock = clock,
) -> Level:
    """Put one level of load on the server. When cancelled, it ends and tells what there is."""
    level = Level(load)
    asker = Asker(connections, options, fixed, now=now)
    meter = LagMeter(now)
    began, sent_again = now(), connections.sent_again
    budget = Budget(options, began, minimum=load.streams or 1)
    meter.start()
    try:
        async with _telling(lambda: progress(budget, level)):
            if load.rate is not None:
                await open_loop(
                    asker, bodies, budget, rate=load.rate, rng=rng, records=level.records
                )
            else:
                streams = load.streams or 1
                await closed_loop(asker, bodies, budget, streams=streams, records=level.records)
    except asyncio.CancelledError:
        level.interrupted = True
        cast(asyncio.Task[Any], asyncio.current_task()).uncancel()  # what there is gets reported
    level.generator = meter.stop()
    level.sent_again = connections.sent_again - sent_again
    _close(level, budget, began, now(), counts=options.requests is not None)
    return level


def _close(level: Level, budget: Budget, began: float, ended: float, *, counts: bool) -> None:
    """Count moments from the beginning, and say where the window was."""
    for record in level.records:
        record.shift(began)
    level.records.sort(key=lambda r: r.intended)
    level.begin, level.end = budget.window_begin - began, budget.window_end - began
    if level.interrupted:
        level.end = min(level.end, ended - began) if not counts else ended - began
    elif counts:
        level.end = ended - began
    elif level.counted:
        level.end = max(level.end, level.counted[-1].intended)


@asynccontextmanager
async def _telling(tell: Callable[[], None]) -> AsyncIterator[None]:
    """Call *tell* five times a second."""

    async def repeat() -> None:
        while True:
            tell()
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(repeat())
        try:
            yield
        finally:
            task.cancel()
