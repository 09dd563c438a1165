"""One input each, and what must hold of it; its ``repr`` is Python, so that it can become a test.

What is expected comes from ``tests.support.strict``, which reads the same bytes on its own.
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
from tests.support.fakes import (
    BACKEND_KEY,
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    FakeClient,
    FakeUpstream,
    Rig,
    chunk,
    event,
    request,
    without_varying,
)
from tests.support.strict import (
    End,
    Fields,
    Malformed,
    Message,
    Request,
    Response,
    take_request,
    take_response,
)

LONGER_THAN_ANY_DEADLINE: Final = 40.0
"""One behind the other, for all requests of one input."""
SETTINGS: Final[dict[str, Any]] = {
    "exposed_routes": "all",
    "max_concurrent_requests": 1,
    "max_requests_per_minute": 1_000_000,
    "auth_failures_per_minute": 0,
    "cors_origins": ("https://a.example",),
    **dict.fromkeys(("client_header_timeout", "client_body_timeout", "keepalive_timeout"), 2.0),
    "request_timeout": 2.0,
    "max_queue_wait": 3.0,  # not as long as another: then chance says what is due first
}
OK_BODY: Final = OK.partition(b"\r\n\r\n")[2]
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
GET: Final = request("GET", "/v1/models")

HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"upgrade http2-settings transfer-encoding content-length".split()
)
"""What ends at the gateway, or is written anew there."""
OF_THE_GATEWAY: Final = frozenset(
    b"date server x-request-id vary x-ratelimit-limit-requests x-ratelimit-remaining-requests "
    b"x-ratelimit-reset-requests".split()
)
"""What it may set in an answer."""
# A path that is read in one way only, after undoing every escape: no empty segment, no dots.
PLAIN_PATH: Final = re.compile(r"(?!.*//)(?!.*/\.{1,2}(?:/|$))/[^\\\0]*", re.DOTALL)


class NotAsItShouldBe(Exception):
    """The gateway did what it must never do."""


def check(condition: object, *what: object) -> None:
    if not condition:
        raise NotAsItShouldBe(" | ".join(map(str, what)))


def end_to_end(message: Message, also_left_out: frozenset[bytes]) -> Fields:
    """The fields that go through the gateway."""
    named = b",".join(message.all(b"connection")).lower().split(b",")
    left_out = HOP_BY_HOP | also_left_out | {token.strip() for token in named}
    return tuple((n, v) for n, v in message.fields if n.lower() not in left_out)


def fields_of_the_engine(response: Response) -> Fields:
    """Those that a client has to get as they came."""
    fields = end_to_end(response, OF_THE_GATEWAY)
    return tuple((n, v) for n, v in fields if not n.lower().startswith(b"access-control-"))


def answers_in(data: bytes, asked: list[Request], *, has_ended: bool) -> list[Response]:
    """Every final answer in *data*, each to the one of *asked* that is in its place."""
    answers: list[Response] = []
    while data and data != CONTINUE:
        to_head = len(answers) < len(asked) and asked[len(answers)].method == b"HEAD"
        found = take_response(data, to_head=to_head, has_ended=has_ended)
        check(found, "half a head", data)
        assert found is not None
        answer, data = found
        answers.append(answer)
    return answers


def check_everything_is_given_back(rig: Rig) -> None:
    """Every client has gone; so does the engine where it is told to, and nothing is left."""
    for upstream in rig.upstreams:
        if upstream.was_left:
            upstream.hang_up()
    rig.services.pool.retire_idle()
    rig.spin()
    check(rig.is_at_rest, "slots, queue or memory are held for nobody")
    check(not rig.services.connections, "a connection is counted that is gone")
    check(all(u.is_closed for u in rig.upstreams), "a connection to the engine is left open")
    rig.requests.clear()
    rig.records.clear()
    rig.upstreams.clear()
    rig.clients.clear()


# What clients send --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestCase:
    """A client sends *pieces*, and then does what *ending* says.

    The engine answers everything with *reply*, or not at all. With *is_busy*, the only slot is
    taken by another client, who leaves last.
    """

    pieces: tuple[bytes, ...]
    reply: bytes | None
    ending: Literal["leave", "reset", "wait"]
    is_busy: bool = False

    def check(self, rig: Rig) -> None:
        seen = self._run(rig, self.pieces)
        raw = b"".join(self.pieces)
        # Whether 100 (Continue) is sent depends on how much of the body has come with the head.
        if len(self.pieces) > 1 and b"100-continue" not in raw.lower():
            whole = self._run(rig, (raw,))
            check(seen == whole, "it depends on where the network cuts", seen, whole)

    def _run(self, rig: Rig, pieces: tuple[bytes, ...]) -> tuple[bytes, bytes]:
        """What can be seen of *pieces*, if all is well: what client and engine got."""
        other = rig.client()
        if self.is_busy:
            rig.reply = None
            other.send(request(body=b"{}"))
            rig.requests.clear()
        rig.reply = None if self.reply is None else lambda _: self.reply or b""
        client = rig.client()
        client.send(*pieces)
        self._end(rig, client)
        other.leave()
        reached = b"".join(rig.requests)
        self._check_what_reached_the_engine(reached)
        self._check_answers(client, reached)
        seen = without_varying(client.received), without_varying(reached)
        check_everything_is_given_back(rig)
        return seen

    def _end(self, rig: Rig, client: FakeClient) -> None:
        match self.ending:
            case "leave":
                client.leave()
            case "reset":
                client.reset()
            case "wait":
                rig.advance(LONGER_THAN_ANY_DEADLINE)
                check(client.is_closed, "no deadline ended it")

    def _check_what_reached_the_engine(self, reached: bytes) -> None:
        understood, _ = requests_in(b"".join(self.pieces))
        left = iter(understood)
        forwarded, rest = requests_in(reached)
        check(not rest, "the engine got something that is no request", reached)
        for one in forwarded:
            check(
                any(is_forwarded_as(asked, one) for asked in left),
                "the engine got a request that no client sent",
                one,
                understood,
            )

    def _check_answers(self, client: FakeClient, reached: bytes) -> None:
        understood, _ = requests_in(b"".join(self.pieces))
        has_ended = client.is_closed and not client.was_cut
        answers = answers_in(client.received, understood, has_ended=has_ended)
        check(len(answers) <= len(understood) + 1, "more answers than requests", answers)
        forwarded, _ = requests_in(reached)
        if self.reply == OK:
            served = [a for a in answers if a.body == OK_BODY or (a.status == 200 and not a.body)]
            check(len(served) >= len(forwarded), "an answer is missing", answers)
        for answer in answers[:-1]:
            check(answer.end is End.WHOLE, "half an answer, and another behind it", answers)
        check(not answers or answers[-1].end is not End.BROKEN, "a malformed answer", answers)


def requests_in(data: bytes) -> tuple[list[Request], bytes]:
    """Every whole request in *data* up to what is none, and the rest."""
    found = []
    try:
        while (taken := take_request(data)) is not None:
            found.append(taken[0])
            data = taken[1]
    except Malformed:
        pass
    return found, data


def is_forwarded_as(asked: Request, forwarded: Request) -> bool:
    """Whether *forwarded* is what the engine has to get for *asked*."""
    start = (asked.method, asked.target, asked.body)
    if start != (forwarded.method, forwarded.target, forwarded.body):
        return False
    path = re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes.fromhex(m[1].decode()), asked.target)
    if not PLAIN_PATH.fullmatch(path.partition(b"?")[0].decode("latin-1")):
        return False
    ours = frozenset((b"host", b"authorization", b"x-api-key", b"expect", b"x-request-id"))
    ids = forwarded.all(b"x-request-id")
    expected = (
        (b"Host", b"127.0.0.1:8080"),
        (b"Authorization", b"Bearer " + BACKEND_KEY.encode()),
        *end_to_end(asked, ours),
        (b"x-request-id", ids[0] if ids else b""),
        (b"Via", asked.version + b" llama-gguf"),
    )
    length = (b"Content-Length", b"%d" % len(asked.body))
    if asked.body:
        return forwarded.fields == (*expected, length)
    return forwarded.fields in (expected, (*expected, length))


# What the engine sends ----------------------------------------------------------------------------

Ending = Literal["open", "close", "reset"]


@dataclass(frozen=True)
class ResponseCase:
    """The engine answers *request* with *pieces*, and then does what *ending* says.

    Before that, on the same connections, it has answered a GET with *before*.
    """

    request: bytes
    before: bytes
    pieces: tuple[bytes, ...]
    ending: Ending

    def check(self, rig: Rig) -> None:
        client = rig.client()
        if self.before:
            rig.answer_with(self.before)
            client.send(GET)
        came_before = len(client.received)
        upstream = self._answer(rig, client)
        answer = self._only_answer(client, client.received[came_before:])
        said = self._read()
        if said is None:
            waits = self.ending == "open" and answer is None
            check(waits or (answer and answer.status == 502), "not refused", answer)
        else:
            wanted, surplus = said
            self._check_answer(client, wanted, answer)
            makes_sense = wanted.end is not End.BROKEN and not surplus
            check(makes_sense or upstream.is_closed, "a connection is kept that makes no sense")
            if wanted.end is End.WHOLE and not client.is_closed:
                self._check_the_next(rig, client)
        client.leave()
        check_everything_is_given_back(rig)

    def _answer(self, rig: Rig, client: FakeClient) -> FakeUpstream:
        rig.reply = None
        client.send(self.request)
        upstream = rig.upstream
        upstream.say(*self.pieces)
        if self.ending == "close":
            upstream.hang_up()
        elif self.ending == "reset":
            upstream.reset()
        if rig.upstream is not upstream:
            is_get = self.request.startswith((b"GET", b"HEAD"))
            check(is_get and not self.pieces, "asked twice, and not because nothing came")
            rig.upstream.hang_up()
        return upstream

    def _read(self) -> tuple[Response, bytes] | None:
        """What the engine said, and what is behind it; None without a head, or with none."""
        try:
            return take_response(
                b"".join(self.pieces),
                to_head=self.request.startswith(b"HEAD"),
                has_ended=self.ending == "close",
            )
        except Malformed:
            return None

    def _only_answer(self, client: FakeClient, data: bytes) -> Response | None:
        asked, _ = requests_in(self.request)
        has_ended = client.is_closed and not client.was_cut
        answers = answers_in(data, asked, has_ended=has_ended)
        check(len(answers) <= 1, "two answers to one request", answers)
        return answers[0] if answers else None

    def _check_answer(self, client: FakeClient, wanted: Response, answer: Response | None) -> None:
        check(answer and answer.status == wanted.status, "another status", wanted, answer)
        assert answer is not None
        same = fields_of_the_engine(answer) == fields_of_the_engine(wanted)
        check(same, "other fields", wanted, answer)
        if wanted.end is End.WHOLE:
            check(answer.end is End.WHOLE and not client.was_cut, "not whole", wanted, answer)
            check(answer.body == wanted.body, "another body", wanted, answer)
        else:
            is_as_broken = wanted.end is End.BROKEN or answer.end is not End.BROKEN
            check(is_as_broken, "a malformed answer", wanted, answer)
            self._check_partial(client, wanted, answer)

    def _check_partial(self, client: FakeClient, wanted: Response, answer: Response) -> None:
        body, told, _ = answer.body.partition(b'data: {"error": {')
        check(wanted.body.startswith(body), "bytes that the engine did not send", wanted, answer)
        if self.ending == "open" and wanted.end is End.OPEN:
            check(not client.is_closed and body == wanted.body, "held back", wanted, answer)
            return
        check(client.is_closed, "the client waits for what will not come", wanted, answer)
        is_open_end = client.was_cut or answer.end is End.OPEN
        check(is_open_end or told, "broken off, and it looks whole", wanted, answer)

    def _check_the_next(self, rig: Rig, client: FakeClient) -> None:
        came_before = len(client.received)
        rig.answer_with(OK)
        client.send(GET)
        answers = answers_in(client.received[came_before:], [], has_ended=False)
        check([a.body for a in answers] == [OK_BODY], "the next answer is another", answers)


# Where they come from -----------------------------------------------------------------------------

REQUESTS: Final = [
    *GOOD.values(),
    *(raw for _, raw in HOSTILE.values()),
    *(request("POST", "/v1/embeddings", CHUNKED) + body for body in MALFORMED_CHUNKS.values()),
    request("HEAD", "/v1/models"),
    request("POST", "/v1/messages", "Expect: 100-continue", "x-request-id: mine", body=BODY),
    request("PUT", "/x%20y?a=%2f", "Connection: x-a", "X-A: 1", "Origin: https://a.example"),
    request("OPTIONS", "/v1/models", "Access-Control-Request-Method: PUT", body=b"12345"),
]
ASKED: Final = [GET, request(body=BODY), request("HEAD", "/v1/models"), request(version="1.0")]
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
# RFC 9112 section 6.3: an interim answer has no body, and RFC 9110 section 8.6 forbids it a length.
# To refuse one that has one and to take no notice is both right.
_FRAMED_INTERIM: Final = re.compile(
    rb"HTTP/1\.[01] 1(?:(?!\r\n\r\n).)*\r\n(?:content-length|transfer-encoding)",
    re.DOTALL | re.IGNORECASE,
)


def new_request_case(rng: random.Random) -> RequestCase:
    base = rng.choice(REQUESTS)
    raw = mutated(rng, base, REQUESTS)
    if rng.random() < 0.5:  # behind itself, as what was remembered of it may be wrong here
        raw = base + raw
    if rng.random() < 0.5:
        raw += rng.choice(REQUESTS)
    reply = rng.choice((OK, OK, OK, STREAM_HEAD + event(1) + LAST_CHUNK, None))
    ending: Literal["leave", "reset", "wait"] = rng.choice(("leave", "reset", "wait"))
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
    """Without end; the same ones for the same *seed*."""
    rng = random.Random(seed)
    while True:
        yield rng.choice(NEW_CASES)(rng)
