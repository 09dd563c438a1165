"""What clients do on a connection, valid and invalid; ``MENU`` has all visits with their weights.

Each visit returns whether the connection can be used again. A client that needs a state behind
the gateway awaits it at the engine; none sleeps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Final

from tests.gateway.test_client_hostile import HOSTILE, MALFORMED_CHUNKS
from tests.soak.client import CHUNKED, SLOWED_KEY, Client, chunked
from tests.soak.engine import BROKEN, NOISE, REFUSED, WHOLE, Engine, Order, Watch, flooded
from tests.soak.resources import Wrong
from tests.support.keys import KEY
from tests.support.messages import End, Response, request

MAX_BODY: Final = 1 << 18
MAX_BODY_OF_A_VISIT: Final = 1 << 15
LONG_WAIT_MS: Final = 5
"""Long enough for a queue to form behind it."""
STREAMED: Final = "text/event-stream"
GET_PATH: Final = "/v1/health"
POST_PATH: Final = "/v1/chat/completions"
PING: Final = request("GET", "/ping", key=None)


class Visitor:
    """One client on one connection, and the choices that it makes.

    Args:
        client: its connection.
        engine: behind the gateway.
        rng: for this visit only, so that its choices do not depend on other visits.
        numbers: shared by all visits, so that each request has a unique number.
        tally: counts what has been done.
    """

    def __init__(
        self,
        client: Client,
        engine: Engine,
        rng: random.Random,
        *,
        numbers: count[int],
        tally: Counter[str],
    ) -> None:
        self.client = client
        self.engine = engine
        self.rng = rng
        self.tally = tally
        self._numbers = numbers

    # Building blocks ------------------------------------------------------------------------------

    def order(self, how: str, size: int | None = None, *, wait_ms: int | None = None) -> Order:
        rng = self.rng
        if size is None:
            size = (
                rng.randint(1, 30) if how.endswith("stream") else rng.choice((0, 50, 5000, 60000))
            )
        if wait_ms is None:
            wait_ms = rng.choice((0, 0, 0, 1, LONG_WAIT_MS))
        return Order(how, next(self._numbers), size, wait_ms)

    def body(self) -> bytes:
        size = self.rng.choice((1, 20, 500, 5000, MAX_BODY_OF_A_VISIT))
        return NOISE[: self.rng.randint(0, size)]

    def post(self, order: Order, body: bytes, *fields: str, key: str | None = KEY) -> bytes:
        """A POST with *body*, of known length or in chunks."""
        target = f"{POST_PATH}?{order.query}"
        if self.rng.random() < 0.7:
            return request("POST", target, *fields, body=body, key=key)
        size = self.rng.randint(max(1, len(body) // 20), len(body) + 1)
        return request("POST", target, *fields, CHUNKED, key=key) + chunked(body, size)

    def get(self, order: Order, *, method: str = "GET", version: str = "1.1") -> bytes:
        return request(method, f"{GET_PATH}?{order.query}", version=version)

    async def send(self, data: bytes) -> None:
        """Send *data*, sometimes in two pieces."""
        if self.rng.random() < 0.1:
            at = self.rng.randint(0, len(data))
            self.client.send(data[:at])
            await self.client.sent()
            data = data[at:]
        self.client.send(data)
        await self.client.sent()

    async def expect(
        self, order: Order, body: bytes = b"", *, is_head_request: bool = False
    ) -> bool:
        """Read the response to *order*, and check that it is complete and correct."""
        response = await self.client.read_response(is_head_request=is_head_request)
        wanted = b"" if is_head_request else order.response_to(body)
        if response is None or response.end is not End.WHOLE or response.status != order.status:
            raise Wrong(f"{order}: {_shown(response)}")
        if response.body != wanted:
            raise Wrong(f"{order}: wrong body: {_shown(response)}")
        self.tally["complete and correct responses"] += 1
        self.tally["bytes of responses"] += len(response.body)
        return response.all("connection") != ["close"]

    async def expect_refusal(self, *statuses: int) -> bool:
        response = await self.client.read_response()
        if response is None or response.end is not End.WHOLE or response.status not in statuses:
            raise Wrong(f"not refused with {statuses}: {_shown(response)}")
        self.tally["refused as expected"] += 1
        return response.all("connection") != ["close"]

    async def go_away(self) -> bool:
        """Disconnect in one of three ways."""
        leave = self.rng.choice((self.client.disconnect, self.client.reset, self.client.close_half))
        await leave()
        self.tally["clients that left early"] += 1
        return False

    async def go_away_from(self, watch: Watch) -> bool:
        """Disconnect, and check that the gateway closes the connection to the engine."""
        await self.go_away()
        await watch.gone.wait()
        return False


def _shown(response: Response | None) -> str:
    if response is None:
        return "no response"
    body = response.body
    return f"{response.status}, {response.end.value}, {len(body)} bytes: {body[:200]!r}"


# Served -------------------------------------------------------------------------------------------


async def gets(v: Visitor) -> bool:
    order = v.order(v.rng.choice([how for how in WHOLE if how != "stream"]))
    await v.send(v.get(order))
    return await v.expect(order)


async def posts(v: Visitor) -> bool:
    order, body = v.order(v.rng.choice([how for how in WHOLE if how != "stream"])), v.body()
    await v.send(v.post(order, body))
    return await v.expect(order, body)


async def repeats_itself(v: Visitor) -> bool:
    """The same head several times, except for the length of its body."""
    order = v.order("length")
    target = f"{POST_PATH}?{order.query}"
    for _ in range(REPEATED):
        body = v.body()
        await v.send(request("POST", target, body=body))
        await v.expect(order, body)
    return True


async def asks_for_the_head(v: Visitor) -> bool:
    order = v.order("length")
    await v.send(v.get(order, method="HEAD"))
    return await v.expect(order, is_head_request=True)


async def speaks_http_1_0(v: Visitor) -> bool:
    order = v.order(v.rng.choice(("length", "chunked", "close")))
    await v.send(v.get(order, version="1.0"))
    await v.expect(order)
    return False


async def waits_for_100_continue(v: Visitor) -> bool:
    order, body = v.order("length"), v.body() + b"."
    length = f"Content-Length: {len(body)}"
    v.client.send(request("POST", f"{POST_PATH}?{order.query}", "Expect: 100-continue", length))
    if not await v.client.read_until(b" 100 Continue\r\n\r\n"):
        raise Wrong(f"{order}: no 100: {bytes(v.client.received[:500])!r}")
    v.client.send(body)
    return await v.expect(order, body)


async def pipelines(v: Visitor) -> bool:
    orders = [v.order(v.rng.choice(("length", "chunked", "error"))) for _ in range(PIPELINED)]
    bodies = [v.body() if v.rng.random() < 0.5 else b"" for _ in orders]
    pairs = list(zip(orders, bodies, strict=True))
    await v.send(b"".join(v.post(o, body) if body else v.get(o) for o, body in pairs))
    for order, body in pairs:
        await v.expect(order, body)
    return True


async def asks_the_gateway_itself(v: Visitor) -> bool:
    path = v.rng.choice(("/ping", "/health", "/metrics", "/metrics?format=prometheus"))
    await v.send(request("GET", path, key=None))
    response = await v.client.read_response()
    if response is None or response.status != 200 or response.end is not End.WHOLE:
        raise Wrong(f"{path}: {_shown(response)}")
    return True


async def has_a_rate_limit(v: Visitor) -> bool:
    order, body = v.order("length"), v.body()
    await v.send(v.post(order, body, key=SLOWED_KEY))
    response = await v.client.read_response()
    if response is None or response.end is not End.WHOLE or response.status not in (200, 429):
        raise Wrong(f"{order}: {_shown(response)}")
    v.tally["over their rate"] += response.status == 429
    return response.all("connection") != ["close"]


# Refused ------------------------------------------------------------------------------------------


async def has_a_wrong_key(v: Visitor) -> bool:
    key = v.rng.choice((None, "sk-unknown-0123456789"))
    await v.send(v.post(v.order("length"), v.body(), key=key))
    return await v.expect_refusal(401)


async def asks_for_a_refused_path(v: Visitor) -> bool:
    status, method, path = v.rng.choice(REFUSED_PATHS)
    await v.send(request(method, path))
    return await v.expect_refusal(status)


async def announces_too_large_a_body(v: Visitor) -> bool:
    await v.send(request("POST", POST_PATH, f"Content-Length: {MAX_BODY + 1}") + v.body())
    return await v.expect_refusal(413)


async def sends_too_large_a_body(v: Visitor) -> bool:
    await v.send(request("POST", POST_PATH, CHUNKED) + chunked(b"x" * (MAX_BODY + 1), MAX_BODY))
    return await v.expect_refusal(413)


async def sends_too_long_a_head(v: Visitor) -> bool:
    status, raw = v.rng.choice(TOO_LONG)
    await v.send(raw)
    return await v.expect_refusal(status)


async def sends_nonsense(v: Visitor) -> bool:
    status, raw = v.rng.choice(NONSENSE)
    await v.send(raw)
    await v.expect_refusal(status)
    return False


# The engine fails ---------------------------------------------------------------------------------


async def meets_a_broken_engine(v: Visitor) -> bool:
    order = v.order(v.rng.choice(REFUSED))
    await v.send(v.get(order) if v.rng.random() < 0.5 else v.post(order, v.body()))
    return await v.expect_refusal(502)


async def meets_an_engine_that_breaks_off(v: Visitor) -> bool:
    order = v.order(v.rng.choice([how for how in BROKEN if how != "cut_stream"]), wait_ms=0)
    version = v.rng.choice(("1.0", "1.1"))
    await v.send(v.get(order, version=version))
    response = await v.client.read_response()
    if response is not None and response.end is not End.OPEN:
        raise Wrong(f"{order}: cut, and it looks complete: {_shown(response)}")
    v.tally["responses that were visibly cut"] += 1
    return False


# Clients leave ------------------------------------------------------------------------------------


async def leaves_in_the_middle_of_its_request(v: Visitor) -> bool:
    raw = v.post(v.order("length"), v.body())
    v.client.send(raw[: v.rng.randint(0, len(raw) - 1)])
    await v.client.sent()
    return await v.go_away()


async def leaves_behind_its_request(v: Visitor) -> bool:
    """Usually while it is queued."""
    v.client.send(v.post(v.order(v.rng.choice(WHOLE), wait_ms=LONG_WAIT_MS), v.body()))
    await v.client.sent()
    return await v.go_away()


async def leaves_before_the_first_byte(v: Visitor) -> bool:
    order = v.order("never")
    watch = v.engine.watch(order)
    await v.send(v.post(order, v.body()))
    await watch.arrived.wait()
    return await v.go_away_from(watch)


async def leaves_in_the_middle_of_an_answer(v: Visitor) -> bool:
    await v.send(v.get(v.order(v.rng.choice(("length", "chunked", "close")), 60000)))
    await v.client.receive()
    return await v.go_away()


async def leaves_with_much_sent_ahead(v: Visitor) -> bool:
    """So much that the gateway stops reading, and gets no event when the client disconnects."""
    order = v.order("never")
    watch = v.engine.watch(order)
    v.client.send(v.get(order) + PING * 2500)
    await watch.arrived.wait()
    leave = v.rng.choice((v.client.disconnect, v.client.reset))
    await leave()
    v.tally["clients that left early"] += 1
    await watch.gone.wait()
    return False


# Streams ------------------------------------------------------------------------------------------


async def streams(v: Visitor) -> bool:
    order, body = v.order("stream"), v.body()
    await v.send(v.post(order, body))
    return await v.expect(order, body)


async def streams_to_http_1_0(v: Visitor) -> bool:
    order = v.order("stream")
    await v.send(v.get(order, version="1.0"))
    await v.expect(order)
    return False


async def leaves_in_the_middle_of_a_stream(v: Visitor) -> bool:
    order = v.order("stream", 1_000_000)
    watch = v.engine.watch(order)
    await v.send(v.post(order, v.body()))
    if not await v.client.read_until(b'"n":%d}' % v.rng.randint(0, 20)):
        raise Wrong(f"{order}: a stream that ends: {bytes(v.client.received[:500])!r}")
    return await v.go_away_from(watch)


async def meets_a_stream_that_breaks_off(v: Visitor) -> bool:
    order = v.order("cut_stream")
    await v.send(v.get(order))
    response = await v.client.read_response()
    if response is not None and response.end is not End.OPEN:
        raise Wrong(f"{order}: cut, and it looks complete: {_shown(response)}")
    events = b"" if response is None else response.body.partition(b'data: {"error": {')[0]
    if not b"".join(order.events()).startswith(events):
        raise Wrong(f"{order}: bytes that the engine did not send: {_shown(response)}")
    v.tally["responses that were visibly cut"] += 1
    return False


async def reads_slowly(v: Visitor) -> bool:
    """Read nothing until backpressure has stopped the engine."""
    order = v.order("flood")
    watch = v.engine.watch(order)
    await v.send(v.get(order))
    await watch.paused.wait()
    v.tally["engines stopped by a slow reader"] += 1
    if v.rng.random() < 0.5:
        return await v.go_away_from(watch)
    await v.client.read_until(b"\r\n0\r\n\r\n")
    response = await v.client.read_response()
    if response is None or response.body != flooded(watch.events) or response.end is not End.WHOLE:
        raise Wrong(f"{order}: {_shown(response)}")
    v.tally["complete and correct responses"] += 1
    v.tally["bytes of responses"] += len(response.body)
    return True


# Weights ------------------------------------------------------------------------------------------

Visit = Callable[[Visitor], Awaitable[bool]]
PIPELINED: Final = 4
REPEATED: Final = 3
REQUESTS_OF: Final[Mapping[Visit, int]] = {pipelines: PIPELINED, repeats_itself: REPEATED}
"""For visits with more than one request."""

MENU: Final[Mapping[Visit, float]] = {
    gets: 20,
    posts: 30,
    repeats_itself: 5,
    asks_for_the_head: 2,
    speaks_http_1_0: 2,
    waits_for_100_continue: 2,
    pipelines: 5,
    asks_the_gateway_itself: 2,
    has_a_rate_limit: 1,
    has_a_wrong_key: 3,
    asks_for_a_refused_path: 3,
    announces_too_large_a_body: 1,
    sends_too_large_a_body: 0.3,
    sends_too_long_a_head: 1,
    sends_nonsense: 3,
    meets_a_broken_engine: 3,
    meets_an_engine_that_breaks_off: 3,
    leaves_in_the_middle_of_its_request: 3,
    leaves_behind_its_request: 4,
    leaves_before_the_first_byte: 3,
    leaves_in_the_middle_of_an_answer: 3,
    leaves_with_much_sent_ahead: 0.05,
}
STREAM_MENU: Final[Mapping[Visit, float]] = {
    streams: 50,
    streams_to_http_1_0: 5,
    leaves_in_the_middle_of_a_stream: 30,
    meets_a_stream_that_breaks_off: 10,
    reads_slowly: 5,
}

REFUSED_PATHS: Final = [
    *((403, "GET", "/slots"), (403, "POST", "/props"), (403, "POST", "/v1/models")),
    *((400, "GET", "/v1/../slots"), (400, "GET", "/v1%2fmodels"), (400, "GET", "/v1//models")),
    *((405, "POST", "/ping"), (405, "TRACE", "/v1/models")),
]
TOO_LONG: Final = [
    (414, request("GET", "/v1/models?" + "x" * 9000)),
    (431, request("GET", "/v1/models", "X: " + "x" * 9000)),
    (431, request("GET", "/v1/models", *["X: y"] * 70)),
]
NONSENSE: Final = [
    *HOSTILE.values(),
    *((400, request("POST", POST_PATH, CHUNKED) + body) for body in MALFORMED_CHUNKS.values()),
]
