"""Clients that send requests to a gateway, and compare the responses with the backend's.

They run in a separate process and do little work per response, so that the gateway is always
busy.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import httptools

from perf.backend import ANSWER, LAST_EVENT

CONNECTIONS: Final = 32
PATIENCE_SECONDS: Final = 30.0
"""The margin of a client's timeout beyond the duration of its responses."""
QUESTION: Final = json.dumps(
    {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Tell me about llamas. " * 20},
        ],
        "temperature": 0.7,
        "max_tokens": 64,
    }
).encode()
_BIRTH: Final = re.compile(rb'"born":([0-9]+)')


@dataclass(frozen=True, slots=True)
class Answers:
    """The responses within *seconds*; ``wrong`` counts failed connections by reason."""

    whole: int
    seconds: float
    wrong: Counter[str]
    latencies_ns: Sequence[int] = ()
    """The latency of each event, sorted."""


def _request(key: str, body: bytes) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nUser-Agent: benchmarks\r\n"
        f"Accept: */*\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class _Client(asyncio.Protocol):
    """One connection. ``over`` is done when all responses have arrived, or one has failed."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wrong = ""
        self.whole = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.end(f"no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"the connection was lost: {exc or 'closed'}")

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), self._body
        self._body = b""
        if status != 200:
            self.end(f"status {status}")
        else:
            self.on_answer(body)

    def on_answer(self, body: bytes) -> None:
        raise NotImplementedError

    def end(self, wrong: str = "") -> None:
        if not self.over.done():
            self.wrong = wrong
            self.over.set_result(None)
            self._transport.close()


C = TypeVar("C", bound=_Client)


class _Repeating(_Client):
    """Sends the next request as soon as a response is complete, until a deadline."""

    def __init__(self, request: bytes, until: float) -> None:
        super().__init__(request)
        self._until = until
        self._now = asyncio.get_running_loop().time

    def on_answer(self, body: bytes) -> None:
        if body != ANSWER:
            self.end("a response that is not the backend's")
            return
        self.whole += 1
        if self._now() < self._until:
            self._transport.write(self._request)
        else:
            self.end()


class _Stream(_Client):
    """Reads one stream; it is settled, and reports that, when its second event arrives."""

    def __init__(self, request: bytes, events: int, on_settled: Callable[[], None]) -> None:
        super().__init__(request)
        self._events = events
        self._on_settled = on_settled
        self.latencies_ns: list[int] = []

    def on_body(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._body += data
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            if birth := _BIRTH.search(event):
                self.latencies_ns.append(now - int(birth[1]))
                if len(self.latencies_ns) == 2:
                    self._on_settled()
            elif event + b"\n\n" == LAST_EVENT:
                self.whole = int(len(self.latencies_ns) == self._events)

    def on_answer(self, body: bytes) -> None:
        self.end("" if self.whole and not body else "a stream with events missing")


async def requests(port: int, key: str, *, seconds: float) -> Answers:
    """Send requests on 32 kept connections for *seconds*, at least one on each."""
    now = asyncio.get_running_loop().time
    begin = now()
    request = _request(key, QUESTION)
    clients = await _run(
        port, lambda: _Repeating(request, begin + seconds), count=CONNECTIONS, seconds=seconds
    )
    return Answers(sum(c.whole for c in clients), now() - begin, _wrong(clients))


async def streams(
    port: int,
    key: str,
    *,
    count: int,
    events: int,
    tick_ms: float,
    on_settled: Callable[[], None] = lambda: None,
) -> Answers:
    """Read *count* concurrent streams. *on_settled* is called when all have their second event."""
    now = asyncio.get_running_loop().time
    begin = now()
    settled = 0

    def settle() -> None:
        nonlocal settled
        settled += 1
        if settled == count:
            on_settled()

    options = {"model": "m", "stream": True, "events": events, "tick_ms": tick_ms}
    request = _request(key, json.dumps(options).encode())
    clients = await _run(
        port, lambda: _Stream(request, events, settle), count=count, seconds=events * tick_ms / 1000
    )
    latencies = sorted(latency for c in clients for latency in c.latencies_ns)
    return Answers(sum(c.whole for c in clients), now() - begin, _wrong(clients), latencies)


async def _run(port: int, make: Callable[[], C], *, count: int, seconds: float) -> list[C]:
    """Run *count* clients; they time out after *seconds* and a margin."""
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(make, "127.0.0.1", port))[1] for _ in range(count)]
    await asyncio.wait([c.over for c in clients], timeout=seconds + PATIENCE_SECONDS)
    for client in clients:
        client.end("no complete response in time")
    return clients


def _wrong(clients: Iterable[_Client]) -> Counter[str]:
    return Counter(c.wrong for c in clients if c.wrong)
