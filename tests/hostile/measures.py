"""Well-behaved clients, which measure what an attack costs them.

A stream through the attacked gateway is compared with an equal stream through a second gateway
that is not attacked, at the same time: a delay of both is the machine's and is subtracted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tests.soak.client import Client
from tests.soak.resources import PATIENCE, Connect
from tests.support.messages import request

GOOD_KEYS: Final = tuple(f"sk-good-{n}-0123456789" for n in range(3))
BAD_KEY: Final = "sk-mallory-0123456789"
KEYS: Final = "".join(f"good{n}:{key}\n" for n, key in enumerate(GOOD_KEYS)) + f"bad:{BAD_KEY}\n"
CHAT: Final = "/v1/chat/completions"
STREAM: Final = b'{"stream": true}'
EVENT_MS: Final = 20
PAUSE_SECONDS: Final = 0.1
GRACE_SECONDS: Final = 5.0
"""For the request that is running at the end of the attack."""

Gap = tuple[float, float]
"""Start and end, on the monotonic clock."""


class EventStream:
    """One stream with an event every 20 ms."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._arrivals: list[float] = []
        self.has_begun = asyncio.Event()

    async def run(self) -> None:
        client = await self._connect()
        fields = (f"x-tick-ms: {EVENT_MS}", "x-events: 1000000")
        client.send(request("POST", CHAT, *fields, body=STREAM, key=GOOD_KEYS[0]))
        try:
            while await client.receive():
                self._arrivals.append(time.monotonic())
                self.has_begun.set()
                client.received.clear()
        finally:
            await client.reset()

    def gaps(self, since: float, until: float) -> list[Gap]:
        """The intervals between events; the last one ends at *until*."""
        moments = [since, *(t for t in self._arrivals if since < t < until), until]
        return list(itertools.pairwise(moments))


def worst_excess_ms(gaps: Sequence[Gap], control: Sequence[Gap]) -> float:
    """The most by which one of *gaps* exceeds those of *control* at the same time."""
    worst = 0.0
    for start, end in gaps:
        if end - start > worst:
            noise = max((e - s for s, e in control if e > start and s < end), default=0.0)
            worst = max(worst, end - start - noise)
    return 1000 * worst


class Requests:
    """A client that sends request after request on one connection and expects 200 each time.

    Every other response is a stream, after which the engine closes its connection as llama-server
    does: the gateway needs a new one.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._is_over = False
        self.served = 0
        self.slowest_seconds = 0.0
        self.failures: Counter[str] = Counter()
        self.has_begun = asyncio.Event()

    async def run(self) -> None:
        key = GOOD_KEYS[1]
        stream = request("POST", CHAT, "x-events: 1", body=STREAM, key=key)
        client = await self._connect()
        for raw in itertools.cycle([stream, request("GET", "/v1/health", key=key)]):
            if self._is_over:
                break
            if client.has_ended or client.was_reset:
                client = await self._connect()
            await self._ask(client, raw)
            await asyncio.sleep(PAUSE_SECONDS)
        await client.reset()

    async def _ask(self, client: Client, raw: bytes) -> None:
        start = time.monotonic()
        client.send(raw)
        response = None
        try:
            async with asyncio.timeout(PATIENCE):
                response = await client.read_response()
        except TimeoutError:
            pass
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - start)
        if response is not None and response.status == 200:
            self.served += 1
            self.has_begun.set()
        else:
            self.failures["no response" if response is None else str(response.status)] += 1

    async def finish(self, task: asyncio.Task[None]) -> None:
        """Send no further request, and wait for the response that is due."""
        self._is_over = True
        done, _ = await asyncio.wait([task], timeout=GRACE_SECONDS)
        if not done:
            self.failures["no response"] += 1
        elif error := task.exception():
            self.failures[repr(error)] += 1
