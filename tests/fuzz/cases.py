"""Cases: an input and its invariants. The ``repr`` of a case is Python, which can become a test.

The expectation comes from ``tests.support.messages``, an independent parser of the same bytes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.fuzz.mutations import mutated, pieces
from tests.gateway.test_client_hostile import HOSTILE, MALFORMED_CHUNKS
from tests.gateway.test_client_requests import BODY, CHUNKED, GOOD
from tests.support.fakes import FakeClient, FakeUpstream, Rig
from tests.support.keys import BACKEND_KEY
from tests.support.messages import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    End,
    Fields,
    Malformed,
    Message,
    Request,
    Response,
    chunk,
    event,
    request,
    take_request,
    take_response,
    without_varying,
)

LONGER_THAN_ANY_DEADLINE: Final = 40.0
"""Seconds; longer than all deadlines in turn, for all requests of one input."""
SETTINGS: Final[dict[str, Any]] = {
    "exposed_routes": "all",
    "max_concurrent_requests": 1,
    "max_requests_per_minute": 1_000_000,
    "auth_failures_per_minute": 0,
    "cors_origins": ("https://a.example",),
    **dict.fromkeys(("client_header_timeout", "client_body_timeout", "keepalive_timeout"), 2.0),
    "request_timeout": 2.0,
    "max_replays": 0,
    "max_queue_wait": 3.0,  # differs from the others, so that which expires first is certain
}
OK_BODY: Final = OK.partition(b"\r\n\r\n")[2]
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
GET: Final = request("GET", "/v1/health")

HOP_BY_HOP: Final = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "transfer-encoding",
        "content-length",
    ]
)
"""Fields that the gateway drops, or sets itself."""
OF_THE_GATEWAY: Final = frozenset(
    [
        "date",
        "server",
        "x-request-id",
        "vary",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ]
)
"""Fields that the gateway may set in a response."""
# An unambiguous path, after percent-decoding: no empty segment, no dot segments.
PLAIN_PATH: Final = re.compile(r"(?!.*//)(?!.*/\.{1,2}(?:/|$))/[^\\\0]*", re.DOTALL)


class Violation(Exception):
    """The gateway violated an invariant."""


def check(condition: object, *what: object) -> None:
    if not condition:
        raise Violation(" | ".join(map(str, what)))


def end_to_end(message: Message, also_dropped: frozenset[str]) -> Fields:
    """The end-to-end fields, which the gateway forwards."""
    named = ",".join(message.all("connection")).lower().split(",")
    dropped = HOP_BY_HOP | also_dropped | {token.strip() for token in named}
    return tuple((n, v) for n, v in message.fields if n.lower() not in dropped)


def fields_of_the_engine(response: Response) -> Fields:
    """Fields that a client must receive unchanged."""
    fields = end_to_end(response, OF_THE_GATEWAY)
    return tuple((n, v) for n, v in fields if not n.lower().startswith("access-control-"))


def responses_in(data: bytes, asked: list[Request], *, has_ended: bool) -> list[Response]:
    """All final responses in *data*, the first to the first of *asked*, and so on."""
    responses: list[Response] = []
    while data and data != CONTINUE:
        is_head_request = len(responses) < len(asked) and asked[len(responses)].method == b"HEAD"
        found = take_response(data, is_head_request=is_head_request, has_ended=has_ended)
        check(found, "an incomplete head", data)
        assert found is not None
        response, data = found
        responses.append(response)
    return responses


def check_everything_is_released(rig: Rig) -> None:
    """After all clients have left and the engine has closed, check that nothing is in use."""
    for upstream in rig.upstreams:
        if upstream.was_half_closed:
            upstream.close()
    rig.replica.pool.retire_idle()
    rig.spin()
    check(rig.is_at_rest, "slots, places in the queue or memory are still in use")
    check(not rig.services.connections, "a closed connection is still counted")
    check(all(u.is_closed for u in rig.upstreams), "a connection to the engine is still open")
    rig.requests.clear()
    rig.records.clear()
    rig.upstreams.clear()
    rig.clients.clear()


# What clients send --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestCase:
    """A client sends *pieces*, and then leaves or waits, according to *ending*.

    The engine responds to every request with *reply*, or never. With *is_busy*, another client
    holds the only slot and leaves last.
    """

    pieces: tuple[bytes, ...]
    reply: bytes | None
    ending: Literal["disconnect", "reset", "wait"]
    is_busy: bool = False

    def check(self, rig: Rig) -> None:
        seen = self._run(rig, self.pieces)
        raw = b"".join(self.pieces)
        # Whether 100 (Continue) is sent depends on how much of the body arrives with the head.
        if len(self.pieces) > 1 and b"100-continue" not in raw.lower():
            whole = self._run(rig, (raw,))
            check(
                seen == whole, "the result depends on how the network splits the input", seen, whole
            )

    def _run(self, rig: Rig, pieces: tuple[bytes, ...]) -> tuple[bytes, bytes]:
        """Check the invariants for *pieces*, and return what client and engine have received."""
        other = rig.client()
        if self.is_busy:
            rig.respond = None
            other.send(request(body=b"{}"))
            rig.requests.clear()
        rig.respond = None if self.reply is None else lambda _: self.reply or b""
        client = rig.client()
        client.send(*pieces)
        self._end(rig, client)
        other.disconnect()
        reached = b"".join(rig.requests)
        self._check_what_reached_the_engine(reached)
        self._check_responses(client, reached)
        seen = without_varying(client.received), without_varying(reached)
        check_everything_is_released(rig)
        return seen

    def _end(self, rig: Rig, client: FakeClient) -> None:
        match self.ending:
            case "disconnect":
                client.disconnect()
            case "reset":
                client.reset()
            case "wait":
                rig.advance(LONGER_THAN_ANY_DEADLINE)
                check(client.is_closed, "no deadline has closed the connection")

    def _check_what_reached_the_engine(self, reached: bytes) -> None:
        understood, _ = requests_in(b"".join(self.pieces))
        remaining = iter(understood)
        forwarded, rest = requests_in(reached)
        check(not rest, "the engine received something that is not a request", reached)
        for one in forwarded:
            check(
                any(is_forwarded_as(asked, one) for asked in remaining),
                "the engine received a request that no client sent",
                one,
                understood,
            )

    def _check_responses(self, client: FakeClient, reached: bytes) -> None:
        understood, _ = requests_in(b"".join(self.pieces))
        has_ended = client.is_closed and not client.was_cut
        responses = responses_in(client.received, understood, has_ended=has_ended)
        check(len(responses) <= len(understood) + 1, "more responses than requests", responses)
        forwarded, _ = requests_in(reached)
        if self.reply == OK:
            served = [a for a in responses if a.body == OK_BODY or (a.status == 200 and not a.body)]
            check(len(served) >= len(forwarded), "a response is missing", responses)
        for response in responses[:-1]:
            check(
                response.end is End.WHOLE,
                "an incomplete response, followed by another one",
                responses,
            )
        check(
            not responses or responses[-1].end is not End.BROKEN, "a malformed response", responses
        )


def requests_in(data: bytes) -> tuple[list[Request], bytes]:
    """All complete requests at the start of *data*, and the rest."""
    found = []
    try:
        while (taken := take_request(data)) is not None:
            found.append(taken[0])
            data = taken[1]
    except Malformed:
        pass
    return found, data


def is_forwarded_as(asked: Request, forwarded: Request) -> bool:
    """Whether *forwarded* is what the engine must receive for *asked*."""
    start = (asked.method, asked.target, asked.body)
    if start != (forwarded.method, forwarded.target, forwarded.body):
        return False
    path = re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes.fromhex(m[1].decode()), asked.target)
    if not PLAIN_PATH.fullmatch(path.partition(b"?")[0].decode("latin-1")):
        return False
    ours = frozenset(("host", "authorization", "x-api-key", "expect", "x-request-id"))
    ids = forwarded.all("x-request-id")
    expected = (
        ("Host", "127.0.0.1:8080"),
        ("Authorization", f"Bearer {BACKEND_KEY}"),
        *end_to_end(asked, ours),
        ("x-request-id", ids[0] if ids else ""),
        ("Via", f"{asked.version.decode()} llama-gguf"),
    )
    length = ("Content-Length", str(len(asked.body)))
    if asked.body:
        return forwarded.fields == (*expected, length)
    return forwarded.fields in (expected, (*expected, length))


# What the engine sends ----------------------------------------------------------------------------

Ending = Literal["open", "close", "reset"]


@dataclass(frozen=True)
class ResponseCase:
    """The engine responds to *request* with *pieces*, and then closes or not, as by *ending*.

    Before that, on the same connections, it has responded to a GET with *before*.
    """

    request: bytes
    before: bytes
    pieces: tuple[bytes, ...]
    ending: Ending

    def check(self, rig: Rig) -> None:
        client = rig.client()
        if self.before:
            rig.respond_with(self.before)
            client.send(GET)
        size_before = len(client.received)
        upstream = self._respond(rig, client)
        response = self._only_response(client, client.received[size_before:])
        parsed = self._parse()
        if parsed is None or self._has_no_body_yet(parsed[0]):
            waits = self.ending == "open" and response is None
            check(waits or (response and response.status == 502), "not an error response", response)
        else:
            wanted, surplus = parsed
            self._check_response(client, wanted, response)
            is_valid = wanted.end is not End.BROKEN and not surplus
            check(is_valid or upstream.is_closed, "a connection with invalid data is kept")
            if wanted.end is End.WHOLE and not client.is_closed:
                self._check_the_next(rig, client)
        client.disconnect()
        check_everything_is_released(rig)

    def _respond(self, rig: Rig, client: FakeClient) -> FakeUpstream:
        rig.respond = None
        client.send(self.request)
        upstream = rig.upstream
        upstream.send(*self.pieces)
        if self.ending == "close":
            upstream.close()
        elif self.ending == "reset":
            upstream.reset()
        if rig.upstream is not upstream:
            is_get = self.request.startswith((b"GET", b"HEAD"))
            check(
                is_get and not self.pieces,
                "retried, although it is not a GET or a response had begun",
            )
            rig.upstream.close()
        return upstream

    def _has_no_body_yet(self, wanted: Response) -> bool:
        """Whether only a head has come, which is passed on with its body, unless of a stream."""
        head, _, rest = b"".join(self.pieces).partition(b"\r\n\r\n")
        while re.match(rb"HTTP/1\.[01] 1", head):  # an interim response
            head, _, rest = rest.partition(b"\r\n\r\n")
        lower = head.lower()
        has_framing = b"\r\ncontent-length:" in lower or b"\r\ntransfer-encoding:" in lower
        is_stream = b"text/event-stream" in lower
        return wanted.end is not End.WHOLE and not rest and has_framing and not is_stream

    def _parse(self) -> tuple[Response, bytes] | None:
        """The engine's response and the bytes after it; None without a complete, valid head."""
        try:
            return take_response(
                b"".join(self.pieces),
                is_head_request=self.request.startswith(b"HEAD"),
                has_ended=self.ending == "close",
            )
        except Malformed:
            return None

    def _only_response(self, client: FakeClient, data: bytes) -> Response | None:
        asked, _ = requests_in(self.request)
        has_ended = client.is_closed and not client.was_cut
        responses = responses_in(data, asked, has_ended=has_ended)
        check(len(responses) <= 1, "two responses to one request", responses)
        return responses[0] if responses else None

    def _check_response(
        self, client: FakeClient, wanted: Response, response: Response | None
    ) -> None:
        check(response and response.status == wanted.status, "another status", wanted, response)
        assert response is not None
        same = fields_of_the_engine(response) == fields_of_the_engine(wanted)
        check(same, "other fields", wanted, response)
        if wanted.end is End.WHOLE:
            check(response.end is End.WHOLE and not client.was_cut, "incomplete", wanted, response)
            check(response.body == wanted.body, "another body", wanted, response)
        else:
            is_as_broken = wanted.end is End.BROKEN or response.end is not End.BROKEN
            check(is_as_broken, "a malformed response", wanted, response)
            self._check_partial(client, wanted, response)

    def _check_partial(self, client: FakeClient, wanted: Response, response: Response) -> None:
        body, error_event, _ = response.body.partition(b'data: {"error": {')
        check(wanted.body.startswith(body), "bytes that the engine did not send", wanted, response)
        if self.ending == "open" and wanted.end is End.OPEN:
            check(not client.is_closed and body == wanted.body, "held back", wanted, response)
            return
        check(
            client.is_closed, "the client waits for data that will never arrive", wanted, response
        )
        is_open_end = client.was_cut or response.end is End.OPEN
        check(is_open_end or error_event, "cut, and it looks complete", wanted, response)

    def _check_the_next(self, rig: Rig, client: FakeClient) -> None:
        size_before = len(client.received)
        rig.respond_with(OK)
        client.send(GET)
        responses = responses_in(client.received[size_before:], [], has_ended=False)
        check([a.body for a in responses] == [OK_BODY], "the next response is wrong", responses)


# Generation ---------------------------------------------------------------------------------------

REQUESTS: Final = [
    *GOOD.values(),
    *(raw for _, raw in HOSTILE.values()),
    *(request("POST", "/v1/embeddings", CHUNKED) + body for body in MALFORMED_CHUNKS.values()),
    request("HEAD", "/v1/health"),
    request("POST", "/v1/messages", "Expect: 100-continue", "x-request-id: mine", body=BODY),
    request("PUT", "/x%20y?a=%2f", "Connection: x-a", "X-A: 1", "Origin: https://a.example"),
    request("OPTIONS", "/v1/health", "Access-Control-Request-Method: PUT", body=b"12345"),
]
ASKED: Final = [GET, request(body=BODY), request("HEAD", "/v1/health"), request(version="1.0")]
LENGTH_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: "
RESPONSES: Final = [
    OK,
    LENGTH_HEAD + b"0\r\n\r\n",
    LENGTH_HEAD + b"16\r\nConnection: close\r\n\r\n0123456789abcdef",
    LENGTH_HEAD + b"5\r\nConnection: X-A, keep-alive\r\nX-A: 1\r\nx-b: \xe9\r\n\r\n12345",
    STREAM_HEAD + event(1) + event(2) + LAST_CHUNK,
    STREAM_HEAD + b'00c;a=b;c="d"\r\ndata: 12345\n\r\n' + chunk(b"\n") + b"0\r\nX-Sum: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nDate: x\r\n\r\n" + chunk(OK) + LAST_CHUNK,
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: 2\n\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 500 \xe9\r\nContent-Length: 3\r\nAccess-Control-Allow-Origin: *\r\n\r\nabc",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
    b"HTTP/1.1 304\r\nContent-Length: 3\r\nKeep-Alive: timeout=5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK,
    OK + OK,
]
# An interim response has no body (RFC 9112 section 6.3) and must not have a Content-Length
# (RFC 9110 section 8.6). If it has one, rejecting it and ignoring the field are both correct.
_FRAMED_INTERIM: Final = re.compile(
    rb"HTTP/1\.[01] 1(?:(?!\r\n\r\n).)*\r\n(?:content-length|transfer-encoding)",
    re.DOTALL | re.IGNORECASE,
)


def new_request_case(rng: random.Random) -> RequestCase:
    base = rng.choice(REQUESTS)
    raw = mutated(rng, base, REQUESTS)
    if rng.random() < 0.5:  # after the valid one, whose cached head may be wrong here
        raw = base + raw
    if rng.random() < 0.5:
        raw += rng.choice(REQUESTS)
    reply = rng.choice((OK, OK, OK, STREAM_HEAD + event(1) + LAST_CHUNK, None))
    ending: Literal["disconnect", "reset", "wait"] = rng.choice(("disconnect", "reset", "wait"))
    return RequestCase(pieces(rng, raw), reply, ending, is_busy=rng.random() < 0.2)


def new_response_case(rng: random.Random) -> ResponseCase:
    base = rng.choice(RESPONSES)
    before = rng.choice((b"", OK, base))
    raw = mutated(rng, base, RESPONSES)
    while _FRAMED_INTERIM.search(raw):
        raw = mutated(rng, base, RESPONSES)
    found = take_response(before)
    if found is None or found[0].end is not End.WHOLE:
        before = b""
    ending: Ending = rng.choice(("open", "close", "close", "reset"))
    return ResponseCase(rng.choice(ASKED), before, pieces(rng, raw), ending)


NEW_CASES: Final[tuple[Callable[[random.Random], RequestCase | ResponseCase], ...]] = (
    new_request_case,
    new_response_case,
)


def cases(seed: int) -> Iterator[RequestCase | ResponseCase]:
    """Cases without end; the same ones for the same *seed*."""
    rng = random.Random(seed)
    while True:
        yield rng.choice(NEW_CASES)(rng)
