"""Sends the load: concurrent streams (closed loop) or random arrivals (open loop).

In the open loop, each request has an intended time, drawn in advance, and its latencies count
from that time. Therefore a stalled server cannot delay the load and so hide the stall
(coordinated omission).

A level has a warm-up, then a window. Requests that begin before the window are warm-up; their
work within the window counts as throughput, not as latency.
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

from llama_gguf_bench.connection import Clock, ConnectionLost, Sink, Target
from llama_gguf_bench.lag import Generator, LagMeter
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.prompts import Body
from llama_gguf_bench.records import INTERRUPTED, Record
from llama_gguf_bench.responses import Response

PAUSE_AFTER_ERROR_SECONDS: Final = 0.5
"""Otherwise a server that rejects immediately would get thousands of requests a second."""

clock: Final[Clock] = time.perf_counter


class Exchanging(Protocol):
    """Sends requests: ``Connections``, or a substitute in tests."""

    sent_again: int

    @property
    def target(self) -> Target: ...

    async def exchange(
        self, request: bytes, sink: Sink, on_connected: Callable[[float], None]
    ) -> None: ...


@dataclass(slots=True)
class Level:
    """The records of one level of load. Times count from its beginning."""

    load: Load
    records: list[Record] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    """The end of the window: requests that begin within it are counted."""
    interrupted: bool = False
    generator: Generator = field(default_factory=Generator)
    sent_again: int = 0
    server: dict[str, Any] = field(default_factory=dict)
    """Facts that the server reported during the level."""

    @property
    def counted(self) -> list[Record]:
        """The window's requests in chronological order, without those interrupted by Ctrl-C."""
        return [r for r in self.records if r.intended >= self.begin and r.error != INTERRUPTED]


class Sender:
    """Sends requests and records the result of each.

    Args:
        connections: to the server.
        options: the parameters of all requests.
        fixed: members of every body: model, max_tokens and so on.
        now: the clock of the intended times and of the connections.
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

    async def send(self, body: Body, records: list[Record], *, intended: float) -> Record:
        """Send *body*; *records* gets its record in any case."""
        options = self._options
        request = self._connections.target.request(
            "POST", options.path, json.dumps({**self._fixed, **body}).encode()
        )
        record = Record(intended, self.now(), streamed=options.streamed)
        response = Response(record, streamed=options.streamed)
        try:
            async with asyncio.timeout(options.timeout):
                await self._connections.exchange(request, response, _noting(record))
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
            if not response.done:
                response.count_events()
            records.append(record)
        return record


def _noting(record: Record) -> Callable[[float], None]:
    def note(now: float) -> None:
        record.connected = now

    return note


class Budget:
    """Decides whether another request may begin.

    1. In the warm-up: yes.
    2. With a number of requests: until this number has begun after the warm-up.
    3. Else until the duration is over, but at least *minimum* requests: if a response takes
       longer than the duration, each stream still has one request that counts.
    """

    def __init__(self, options: Options, begin: float, *, minimum: int) -> None:
        self._begin = begin
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
        """The progress of the level with its warm-up, 0 to 1."""
        if self._wanted is not None:
            return min(1.0, self.begun / self._wanted)
        whole = self.window_end - self._begin
        return min(1.0, max(0.0, (now - self._begin) / whole)) if whole > 0 else 1.0


async def closed_loop(
    sender: Sender, bodies: Iterator[Body], budget: Budget, *, streams: int, records: list[Record]
) -> None:
    """Keep *streams* requests active until *budget* is used up."""

    async def stream() -> None:
        while budget.may_begin(now := sender.now()):
            record = await sender.send(next(bodies), records, intended=now)
            if record.error:
                await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream())


async def open_loop(
    sender: Sender,
    bodies: Iterator[Body],
    budget: Budget,
    *,
    rate: float,
    rng: random.Random,
    records: list[Record],
) -> None:
    """Send requests at random times, *rate* a second on average, regardless of earlier ones."""
    due = sender.now()
    async with asyncio.TaskGroup() as group:
        while budget.may_begin(due := due + rng.expovariate(rate)):
            await asyncio.sleep(due - sender.now())
            group.create_task(sender.send(next(bodies), records, intended=due))


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
    """Send one level of load. When cancelled, it ends and returns the results so far."""
    level = Level(load)
    sender = Sender(connections, options, fixed, now=now)
    meter = LagMeter(now)
    began, sent_again = now(), connections.sent_again
    budget = Budget(options, began, minimum=load.streams or 1)
    meter.start()
    try:
        async with _reporting(lambda: progress(budget, level)):
            if load.rate is not None:
                await open_loop(
                    sender, bodies, budget, rate=load.rate, rng=rng, records=level.records
                )
            else:
                streams = load.streams or 1
                await closed_loop(sender, bodies, budget, streams=streams, records=level.records)
    except asyncio.CancelledError:
        level.interrupted = True
        cast(
            asyncio.Task[Any], asyncio.current_task()
        ).uncancel()  # the results so far are reported
    level.generator = meter.stop()
    level.sent_again = connections.sent_again - sent_again
    _close(level, budget, began, now(), counts=options.requests is not None)
    return level


def _close(level: Level, budget: Budget, began: float, ended: float, *, counts: bool) -> None:
    """Convert times to seconds since the beginning, and set the window."""
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
async def _reporting(report: Callable[[], None]) -> AsyncIterator[None]:
    """Call *report*, which shows the progress, five times a second."""

    async def repeat() -> None:
        while True:
            report()
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(repeat())
        try:
            yield
        finally:
            task.cancel()
