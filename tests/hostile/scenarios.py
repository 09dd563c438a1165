"""The scenarios: what hostile clients do, with which settings, and the bounds that must hold.

An attack runs until it is cancelled or has nothing more to do. It reports faults that only a
response shows; the runner measures its cost.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final

from tests.hostile.measures import BAD_KEY, CHAT, GOOD_KEYS, STREAM
from tests.soak.client import Client
from tests.support.messages import request

MB: Final = 1_000_000
LARGE: Final = 9 * MB
"""Bytes of a large body, below MAX_REQUEST_BODY_SIZE."""
SMALL_BUFFER: Final = 1 << 14
MAX_SENT_AHEAD: Final = 32 * MB
"""Bytes of pipelined requests on one connection."""
STUCK_SECONDS: Final = 2.0
"""A gateway that has read nothing for so long has stopped reading."""
STAY_SECONDS: Final = 3.0
"""On a connection that the gateway has closed: longer than it lingers."""
TRICKLE_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 0.05
RESPONSE_SECONDS: Final = 5.0
"""For a response that must come during the attack."""
ELSEWHERE: Final = "127.0.0.2"
"""The address of hostile clients: limits per address must not affect the others."""


class Target:
    """The attacked gateway.

    Args:
        port: where it listens.
        trust: for TLS; None = it speaks plain HTTP.
        terminal: writes to the pipe that may be its standard error, and that has no reader.
    """

    def __init__(self, port: int, trust: ssl.SSLContext | None, terminal: int) -> None:
        self.port = port
        self.trust = trust
        self.terminal = terminal
        self.faults: list[str] = []
        self._clients: set[Client] = set()

    async def connect(self, source: str = ELSEWHERE, *, speaks_tls: bool = True) -> Client:
        """A connection that stays until the end of the attack."""
        trust = self.trust if speaks_tls else None
        client = await Client.connect(
            self.port, buffer_bytes=SMALL_BUFFER, source=source, trust=trust
        )
        self._clients.add(client)
        return client

    @asynccontextmanager
    async def visit(self, *, speaks_tls: bool = True) -> AsyncIterator[Client]:
        """A connection that ends with a reset."""
        client = await self.connect(speaks_tls=speaks_tls)
        try:
            yield client
        finally:
            self._clients.discard(client)
            await client.reset()

    def leave(self) -> None:
        for client in self._clients:
            client.abort()

    async def expect(self, client: Client, status: int, what: str) -> bool:
        """Whether the next response has *status*; a fault if not, or if it does not come."""
        found = "no response"
        try:
            async with asyncio.timeout(RESPONSE_SECONDS):
                response = await client.read_response()
            found = "a closed connection" if response is None else str(response.status)
        except TimeoutError:
            pass
        finally:  # also when it is cancelled
            is_right = found == str(status)
            if not is_right:
                self.faults.append(f"{what}: {found} instead of {status}")
        return is_right

    async def check_that_a_large_body_is_accepted(self) -> None:
        client = await self.connect()
        client.send(_large(key=GOOD_KEYS[2]))
        await self.expect(client, 200, "a large body of another key")


Attack = Callable[[Target], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One attack and its bounds.

    Args:
        attack: what the hostile clients do.
        settings: of the gateway.
        before: shell commands before its start; ``{terminal}`` is a pipe without a reader.
        at_once: requests that the engine processes concurrently.
        resident_mb: growth of its resident memory.
        gap_ms: delay of an event of another key's stream.
        slowest_ms: duration of another key's request; 0 = not judged.
        tls: whether it speaks TLS.
        is_cheap: whether it takes only seconds, on any machine: part of `make test`.
    """

    attack: Attack
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: str = ""
    at_once: int = 1000
    resident_mb: float = 20.0
    gap_ms: float = 100.0
    slowest_ms: float = 0.0
    tls: bool = False
    is_cheap: bool = False


def _large(*fields: str, key: str = BAD_KEY) -> bytes:
    """A request for a short stream, with a large body of many small JSON values."""
    opening, filling, ending = b'{"stream":true,"messages":[', b'{"content":"x"},', b"{}]}"
    body = opening + filling * (LARGE // len(filling) - 3) + ending
    return request("POST", CHAT, "x-events: 1", *fields, body=body.ljust(LARGE), key=key)


def _head(size: int, path: str = CHAT, *, method: str = "POST", key: str | None = BAD_KEY) -> bytes:
    """A request that declares a body of *size* bytes, without the body."""
    return request(method, path, f"Content-Length: {size}", key=key)


async def together(number: int, attack: Attack, target: Target) -> None:
    """*number* of *attack* concurrently; the gateway may refuse or close any of them."""

    async def one() -> None:
        with suppress(OSError):
            await attack(target)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(number):
            tasks.create_task(one())


async def repeatedly(attack: Attack, target: Target) -> None:
    while True:
        with suppress(OSError):
            await attack(target)
        await asyncio.sleep(0)


# Pipelined requests whose responses are not read --------------------------------------------------


async def never_reads(raw: bytes, target: Target) -> None:
    client = await target.connect()
    batch = raw * (65536 // len(raw))
    for _ in range(MAX_SENT_AHEAD // len(batch)):
        client.send(batch)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await client.sent()
        except TimeoutError:
            break
        if client.is_closed:
            break


# Bodies -------------------------------------------------------------------------------------------


async def declares_large_bodies(target: Target) -> None:
    """40 heads without a byte of their bodies."""
    for _ in range(40):
        client = await target.connect()
        client.send(_head(LARGE))
        await client.sent()
    await target.check_that_a_large_body_is_accepted()


async def repeats_a_public_head_with_a_length(target: Target) -> None:
    for _ in range(8):
        client = await target.connect()
        client.send(_head(0, "/", method="GET", key=None))
        await target.expect(client, 200, "GET / without a body")
        client.send(_head(LARGE, "/", method="GET", key=None))
        if not await target.expect(client, 413, "GET / with a body, without a key"):
            break
    await target.check_that_a_large_body_is_accepted()


async def queues_large_streams(target: Target) -> None:
    client = await target.connect()
    client.send(_large("x-work-ms: 2000"))
    await client.read_rest()


async def sends_slowly(sent: bytes, target: Target) -> None:
    """*sent* byte by byte, and then more."""
    client = await target.connect()
    for at in count():
        client.send(sent[at : at + 1] or b"x")
        await asyncio.sleep(TRICKLE_SECONDS)
        if client.is_closed:
            break


async def reads_slowly(target: Target) -> None:
    client = await target.connect()
    client.send(request("POST", CHAT, body=b"x" * MB, key=BAD_KEY))  # the response echoes it
    while await client.receive():
        client.received.clear()
        await asyncio.sleep(TRICKLE_SECONDS)


# Slots and queue ----------------------------------------------------------------------------------


async def never_pauses(raw: bytes, target: Target) -> None:
    """One request after the other on one connection."""
    client = await target.connect()
    while not client.is_closed:
        client.send(raw)
        response = await client.read_response()
        if response is None or response.all("connection") == ["close"]:
            break
        if response.status != 200:
            await asyncio.sleep(RETRY_SECONDS)
    await client.reset()


# Connections --------------------------------------------------------------------------------------


async def keeps_silent(begun: bytes, target: Target) -> None:
    """Send *begun* and nothing more, and connect again after the gateway has closed."""
    async with target.visit(speaks_tls=False) as client:
        client.send(begun)
        await client.read_rest()
        if client.received:  # a refusal, after which the gateway lingers
            await asyncio.sleep(STAY_SECONDS)
    await asyncio.sleep(TRICKLE_SECONDS)


async def connects_and_resets(target: Target) -> None:
    async with target.visit():
        pass


async def leaves_in_the_middle(points: Sequence[bytes], target: Target) -> None:
    """After each of *points*: once with a reset, once with a half-closed connection."""
    for begun in points:
        async with target.visit() as client:
            client.send(begun)
            await client.sent()
        async with target.visit() as client:
            client.send(begun)
            await (client.disconnect() if target.trust else client.close_half())


async def guesses_keys(sources: count[int], target: Target) -> None:
    client = await target.connect(f"127.0.1.{1 + next(sources) % 250}")
    for n in range(40):
        client.send(request("GET", "/v1/health", key=f"sk-wrong-{n}-0123456789"))
        response = await client.read_response()
        if response is None or response.status not in (401, 429):
            target.faults.append(f"a wrong key: {response and response.status}")
            break
    await client.disconnect()


# The terminal -------------------------------------------------------------------------------------


async def fills_the_terminal(target: Target) -> None:
    """The pipe is full, and each reload of the keys writes a line to it."""
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(target.terminal, b"." * size)
    client = await target.connect()
    while True:
        client.send(request("POST", "/reload", body=b"", key=BAD_KEY))
        await client.read_response()
        await asyncio.sleep(TRICKLE_SECONDS)


# The table ----------------------------------------------------------------------------------------

_SCRIPT: Final = request("GET", "/dashboard/main.js", key=None)
_TOKENIZE: Final = request("POST", "/tokenize", "x-work-ms: 500", body=b"{}", key=BAD_KEY)
_SHORT_STREAM: Final = request(
    "POST", CHAT, "x-events: 10", "x-tick-ms: 20", body=STREAM, key=BAD_KEY
)
_HANDSHAKE: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The first bytes of a ClientHello."""
_POINTS: Final = (
    b"POST /v1/chat/comp",
    _head(LARGE),
    _head(LARGE) + bytes(100_000),
    request("POST", CHAT, "Transfer-Encoding: chunked", key=BAD_KEY) + b"5\r\nab",
    _SHORT_STREAM,
    _SCRIPT * 20,
)


def _unread(raw: bytes, **more: Any) -> Scenario:
    return Scenario(partial(together, 2, partial(never_reads, raw)), **more)


def _many(number: int, attack: Attack, **more: Any) -> Scenario:
    return Scenario(partial(together, number, partial(repeatedly, attack)), **more)


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "unread-script": _unread(_SCRIPT, is_cheap=True),
    "unread-health": _unread(request("GET", "/health", key=None)),
    "unread-engine": _unread(request("GET", "/v1/health", key=BAD_KEY)),
    "unread-wrong-keys": _unread(request("GET", "/v1/health", key="sk-wrong-0123456789")),
    "unread-options": _unread(request("OPTIONS", CHAT, "Origin: https://a.example", key=None)),
    "unread-tls": _unread(_SCRIPT, tls=True),
    # One body is accepted and in memory twice for a moment: as received and as forwarded.
    "heads-only": Scenario(declares_large_bodies, resident_mb=20 + 2 * LARGE / MB, is_cheap=True),
    "web-ui": Scenario(
        repeats_a_public_head_with_a_length,
        {"WEB_UI": True},
        resident_mb=20 + 2 * LARGE / MB,
        is_cheap=True,
    ),
    "full-queue": _many(
        40,
        partial(never_pauses, _SHORT_STREAM),
        settings={"MAX_QUEUE_SIZE": 16},
        slowest_ms=1000,  # two turns of a stream of 200 ms, and as much again
    ),
    "tokenize": _many(
        32,
        partial(never_pauses, _TOKENIZE),
        at_once=8,  # as llama-server with four slots
        slowest_ms=1000,
    ),
    # Three at the engine and eight in the queue, each in memory twice for a moment.
    "keepalive": _many(
        11,
        queues_large_streams,
        settings={"SSE_KEEPALIVE": 1, "MAX_BODY_MEMORY": 15 * LARGE},
        resident_mb=20 + 2 * 11 * LARGE / MB,
    ),
    "few-files": _many(260, partial(keeps_silent, b""), before="ulimit -n 200;"),
    "few-files-tls": _many(
        260, partial(keeps_silent, _HANDSHAKE), before="ulimit -n 200;", tls=True
    ),
    "slow-heads": Scenario(partial(together, 200, partial(sends_slowly, _SHORT_STREAM))),
    "slow-bodies": Scenario(partial(together, 200, partial(sends_slowly, _head(1000)))),
    # Each has sent 1 MB, in memory twice for a moment.
    "slow-readers": _many(
        32, reads_slowly, settings={"MAX_CONCURRENT_REQUESTS": 64}, resident_mb=20 + 2 * 32
    ),
    "leavers": _many(8, partial(leaves_in_the_middle, _POINTS)),
    "leavers-tls": _many(8, partial(leaves_in_the_middle, _POINTS), tls=True),
    # 64 KB per handshake, most of it OpenSSL's.
    "half-handshakes": _many(
        400, partial(keeps_silent, _HANDSHAKE), resident_mb=20 + 400 * 0.064, tls=True
    ),
    "storm": _many(64, connects_and_resets),
    "wrong-keys": _many(32, partial(guesses_keys, count())),
    "stopped-terminal": Scenario(fills_the_terminal, before="exec 2> {terminal};"),
}
