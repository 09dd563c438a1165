"""Connections that serve one request after the other: to the engine, and from a client."""

from __future__ import annotations

import pytest

from llama_gguf.access.key_store import REST_SECONDS
from llama_gguf.engines.status import ChildState
from tests.gateway.test_client_responses import ANSWERS, GET, HEAD, OK_BODY, Case
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import EXPIRED_KEY, KEY, KEYS_TEXT, OTHER_KEY
from tests.support.messages import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    bytewise,
    chunk,
    code_of,
    event,
    read_responses,
    request,
    splits,
    without_varying,
)


def test_a_connection_to_the_engine_is_used_again(rig: Rig) -> None:
    rig.respond_with(OK)
    for _ in range(3):
        rig.send_request()

    assert len(rig.upstreams) == 1
    assert len(rig.requests) == 3


def test_a_connection_is_used_again_a_second_after_a_stream_and_not_before(rig: Rig) -> None:
    # llama-server closes it, without an announcement: docs/adr/0038.
    rig.send_request()
    rig.upstream.send(STREAM_HEAD + event(1) + LAST_CHUNK)
    rig.send_request()
    assert len(rig.upstreams) == 2

    rig.advance(1)
    rig.send_request()

    assert len(rig.upstreams) == 2
    assert len(rig.requests) == 3


def test_what_an_idle_connection_says_is_never_the_next_answer(rig: Rig) -> None:
    first = rig.send_request()
    rig.upstream.send(OK)
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    second = rig.send_request()

    assert rig.upstreams[0].is_closed
    assert len(rig.upstreams) == 2
    assert len(first.responses) == 1
    assert second.received == b""


def test_what_comes_behind_an_answer_is_never_the_next_answer(rig: Rig) -> None:
    client = rig.send_request(GET + GET)
    rig.upstream.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    assert b"poison" not in client.received
    rig.upstream.send(OK)

    assert len(rig.upstreams) == 2
    assert [a.body for a in client.responses] == [b'{"ok":true}'] * 2


def test_a_kept_connection_that_the_engine_closes_is_forgotten(rig: Rig) -> None:
    rig.send_request()
    rig.upstream.send(OK)
    rig.upstream.close()
    rig.send_request()

    assert len(rig.upstreams) == 2


def stale(rig: Rig, raw: bytes) -> FakeClient:
    """A client whose request goes out on a kept connection that is dead already."""
    rig.send_request(GET)
    rig.upstream.send(OK)
    client = rig.send_request(raw)
    assert len(rig.upstreams) == 1
    rig.upstreams[0].close()
    return client


@pytest.mark.parametrize("raw", [GET, HEAD, request("GET", "/v1/health", body=b"with a body")])
def test_a_get_on_a_stale_connection_is_sent_once_more_on_a_new_one(raw: bytes, rig: Rig) -> None:
    client = stale(rig, raw)
    assert client.received == b""
    assert rig.requests[1] == rig.requests[2]
    rig.upstreams[1].send(OK)

    assert client.received.startswith(b"HTTP/1.1 200 OK")
    assert rig.records[-1].outcome == "done"


def test_it_is_sent_once_more_and_not_twice(rig: Rig) -> None:
    client = stale(rig, GET)
    rig.upstreams[1].close()

    assert client.response.status == 502
    assert len(rig.requests) == 3


def test_a_post_on_a_stale_connection_is_sent_again_where_replays_are_allowed(
    rig: Rig,
) -> None:
    client = stale(rig, request(body=b"{}"))
    rig.upstreams[1].send(OK)

    assert client.response.status == 200
    assert rig.is_at_rest


def test_a_post_on_a_stale_connection_is_not_sent_again_without_replays(new_rig: NewRig) -> None:
    rig = new_rig(max_replays=0)
    client = stale(rig, request(body=b"{}"))

    assert client.response.status == 502
    assert code_of(client.response) == "backend_error"
    assert len(rig.requests) == 2
    assert rig.is_at_rest


def test_a_get_whose_answer_had_begun_is_not_sent_again(rig: Rig) -> None:
    rig.send_request(GET)
    rig.upstream.send(OK)
    client = rig.send_request(GET)
    rig.upstream.send(b"HTTP/1.1 2")
    rig.upstream.close()

    assert client.response.status == 502
    assert len(rig.requests) == 2


def test_a_get_on_a_new_connection_is_not_sent_again(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.close()

    assert client.response.status == 502
    assert len(rig.requests) == 1


# The head of OK, which the connection has just seen, with another length in it.
OTHER_LENGTHS = [b"", b" ", b"+11", b"-1", b"11, 11", b"0x11", b"1e1", b"11 11", b"9" * 19, b"\xb2"]


@pytest.mark.parametrize("length", OTHER_LENGTHS)
def test_nonsense_is_502_behind_a_good_answer_as_well(length: bytes, rig: Rig) -> None:
    rig.send_request()
    rig.upstream.send(OK)
    client = rig.send_request()
    rig.upstream.send(OK.replace(b": 11\r\n", b": " + length + b"\r\n"))

    assert client.response.status == 502
    assert rig.upstream.was_cut
    assert len(rig.upstreams) == 1


@pytest.mark.parametrize("first", ANSWERS.values(), ids=ANSWERS.keys())
def test_no_answer_depends_on_what_came_before_it_on_its_connection(first: Case, rig: Rig) -> None:
    def answered(case: Case) -> bytes:
        client = rig.send_request(case.raw)
        rig.upstream.send(case.response)
        return without_varying(client.received)

    for second in ANSWERS.values():
        alone = answered(second)
        rig.replica.pool.retire_idle()
        answered(first)
        rig.advance(1)  # after a stream, a connection is not used at once
        connections = len(rig.upstreams)

        assert answered(second) == alone
        assert len(rig.upstreams) == connections + (not first.keeps_upstream)
        rig.replica.pool.retire_idle()


@pytest.mark.parametrize("raw", [GET, HEAD])
def test_a_head_and_a_get_on_one_connection_are_not_confused(raw: bytes, rig: Rig) -> None:
    other = GET if raw is HEAD else HEAD
    for method in (raw, other, raw, other):
        client = rig.send_request(method)
        rig.upstream.send(OK if method is GET else OK.partition(b"{")[0])
        (response,) = read_responses(client.received, is_head_request=method is HEAD)
        assert response["content-length"] == "11"

    assert len(rig.upstreams) == 1
    assert len(rig.records) == 4


@pytest.mark.parametrize("length", [0, 1, 10, 12, 100])
def test_the_same_head_with_another_length_has_another_body(length: int, rig: Rig) -> None:
    body = b"x" * length
    responses = (OK, OK.partition(b"{")[0].replace(b"11", b"%d" % length) + body, OK)
    for response, expected in zip(responses, (OK_BODY, body, OK_BODY), strict=True):
        client = rig.send_request()
        rig.upstream.send(response)
        assert client.response.is_whole
        assert client.response.body == expected

    assert len(rig.upstreams) == 1


LARGE = OK.partition(b"{")[0].replace(b"11", b"100000") + b"x" * 100_000


def test_a_client_that_is_slow_to_take_its_answer_pauses_nobody_else_s(rig: Rig) -> None:
    slow = rig.client()
    slow.stall()
    slow.send(GET)
    rig.upstream.send(LARGE)
    other = rig.send_request(GET)
    rig.upstream.send(OK)
    slow.disconnect()

    assert other.response.body == OK_BODY
    assert len(rig.upstreams) == 1
    assert not rig.upstream.is_closed


def test_a_client_that_is_slow_to_take_its_answer_leaves_no_connection_paused(rig: Rig) -> None:
    slow = rig.client()
    slow.stall()
    slow.send(GET + GET)
    rig.upstream.send(LARGE[:90_000])
    assert not rig.upstream.transport.is_reading()
    rig.upstream.transport.receive(LARGE[90_000:])  # waits for the client
    slow.resume_reading()
    rig.upstream.send(OK)
    rig.send_request(GET)
    rig.upstream.send(OK)

    assert [len(a.body) for a in slow.responses] == [100_000, 11]
    assert rig.clients[-1].response.status == 200
    assert len(rig.upstreams) == 1


# A client that repeats its head -------------------------------------------------------------------

POST = request(body=b"{}")
TARGET = "POST", "/v1/chat/completions"
NO_BODY = OK.partition(b"{")[0]


def served(rig: Rig, *pieces: bytes) -> FakeClient:
    """A client that has sent *pieces* to an engine that answers everything."""
    rig.respond = lambda data: NO_BODY if data.startswith(b"HEAD ") else OK
    client = rig.client()
    client.send(*pieces)
    return client


def statuses(client: FakeClient) -> list[int]:
    return [response.status for response in client.responses]


CHUNKS = chunk(b'{"a"') + chunk(b":1}") + LAST_CHUNK
REPEATED = {
    "a post": POST,
    "another length": request(body=b'{"a":[1,2,3]}'),
    "no bytes": request(body=b""),
    "no length": request(*TARGET),
    "another key": request(body=b"{}", key=OTHER_KEY),
    "no key": request(body=b"{}", key=None),
    "a wrong key": request(body=b"{}", key="sk-nobody-0123456789"),
    "an expired key": request(body=b"{}", key=EXPIRED_KEY),
    "an id": request(*TARGET, "x-request-id: mine", body=b"{}"),
    "another id": request(*TARGET, "x-request-id: yours", body=b"{}"),
    "a field more": request(*TARGET, "X-A: b", body=b"{}"),
    "chunks": request(*TARGET, "Transfer-Encoding: chunked") + CHUNKS,
    "no chunks": request(*TARGET, "Transfer-Encoding: chunked") + LAST_CHUNK,
    "expected": request(*TARGET, "Expect: 100-continue", body=b"{}"),
    "a get": GET,
    "a get with a body": request("GET", "/v1/health", body=b"{}"),
    "a query": request("GET", "/v1/health?a=b"),
    "no slot": request("POST", "/tokenize", body=b"{}"),
    "a ping": request("GET", "/ping", key=None),
    "a ping with a body": request("GET", "/ping", body=b"{}"),
    "a preflight": request("OPTIONS", "/v1/health", "Origin: http://a.example"),
    "an origin": request(*TARGET, "Origin: http://a.example", body=b"{}"),
    "another origin": request(*TARGET, "Origin: http://b.example", body=b"{}"),
    "a foreign origin": request(*TARGET, "Origin: http://c.example", body=b"{}"),
    "not exposed": request("POST", "/slots/0", body=b"{}"),
    "another method": request("POST", "/ping", body=b"{}"),
    "anthropic": request("POST", "/v1/messages", body=b"{}", key=None),
}
LAST = REPEATED | {
    "http/1.0": request(body=b"{}", version="1.0"),
    "close": request(*TARGET, "Connection: close", body=b"{}"),
    "two lengths": request(*TARGET, "Content-Length: 2", body=b"{}"),
    "length and chunks": request(*TARGET, "Transfer-Encoding: chunked", body=b"{}"),
    "a length with a sign": POST.replace(b"h: 2", b"h: +2"),
    "no digits": POST.replace(b"h: 2", b"h: "),
    "no body": POST[:-2],
    "too large": POST.replace(b"h: 2", b"h: 99999999999"),
    "too many digits": POST.replace(b"h: 2", b"h: 9999999999999999999"),
}


@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("first", REPEATED.values(), ids=REPEATED.keys())
def test_no_request_depends_on_what_came_before_it_on_its_connection(
    first: bytes, split: bool, new_rig: NewRig
) -> None:
    rig = new_rig(
        auth_failures_per_minute=0,
        max_requests_per_minute=100_000,
        cors_origins=("http://a.example", "http://b.example"),
    )

    def what_comes_of(client: FakeClient, raw: bytes) -> tuple[object, object, object, bool]:
        """What client, engine and access log get, and whether the connection serves on."""
        received, requests, records = len(client.received), len(rig.requests), len(rig.records)
        client.send(*(bytewise(raw) if split else (raw,)))
        rig.replica.pool.retire_idle()
        return (
            without_varying(client.received[received:]),
            [without_varying(message) for message in rig.requests[requests:]],
            [(r.key_id, r.method, r.path, r.status, r.bytes_in) for r in rig.records[records:]],
            not client.is_closed and not client.connection.is_busy,
        )

    for second in LAST.values():
        alone = what_comes_of(served(rig), second)
        *_, serves_on = alone
        client = served(rig)
        for _ in range(2):
            what_comes_of(client, first)

        for _ in range(1 + serves_on):
            assert what_comes_of(client, second) == alone, second


@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
def test_repeats_that_were_sent_ahead_are_told_apart_by_their_lengths(
    split: bool, rig: Rig
) -> None:
    bodies = [b"x" * length for length in (2, 2, 0, 11, 5, 100, 2)]
    data = b"".join(request(body=body) for body in bodies)
    client = served(rig, *(bytewise(data) if split else (data,)))

    assert statuses(client) == [200] * len(bodies)
    assert [r.partition(b"\r\n\r\n")[2] for r in rig.requests] == bodies
    assert [
        b"Content-Length: %d\r\n" % len(b) in r for b, r in zip(bodies, rig.requests, strict=True)
    ]
    assert len({a["x-request-id"] for a in client.responses}) == len(bodies)


@pytest.mark.parametrize("pieces", [*splits(POST)], ids=lambda pieces: str(len(pieces[0])))
def test_a_repeated_request_is_the_same_however_it_is_split(
    pieces: tuple[bytes, ...], rig: Rig
) -> None:
    client = served(rig, POST)
    client.send(*pieces)

    assert statuses(client) == [200, 200]
    assert without_varying(rig.requests[1]) == without_varying(rig.requests[0])
    assert rig.is_at_rest


# Repeated: who asks -------------------------------------------------------------------------------

MOMENT = 1893456000.0  # 2030 begins


def test_a_key_that_a_reload_removes_opens_nothing_any_more(rig: Rig) -> None:
    client = served(rig, POST, POST)
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.services.key_store.load()
    client.send(POST)
    rig.set_keys(KEYS_TEXT)
    rig.services.key_store.load()
    client.send(POST)

    assert statuses(client) == [200, 200, 401, 200]
    assert len(rig.requests) == 3


def test_a_key_that_a_reload_gives_to_another_is_the_other_s(rig: Rig) -> None:
    client = served(rig, POST)
    rig.set_keys(f"mallory:{KEY}:1\n")
    rig.services.key_store.load()
    client.send(POST, POST)

    assert statuses(client) == [200, 200, 429]
    assert [record.key_id for record in rig.records] == ["alice", "mallory", "mallory"]


def test_a_key_that_a_reload_lets_expire_expires(rig: Rig) -> None:
    client = served(rig, POST)
    rig.set_keys(f"alice:{KEY}::2030-01-01T00:00:00Z\n")
    rig.services.key_store.load()
    rig.services.clock.wall = MOMENT - 1
    client.send(POST, POST)
    rig.services.clock.wall = MOMENT
    client.send(POST)

    assert statuses(client) == [200, 200, 200, 401]


def test_a_key_expires_between_two_equal_requests(new_rig: NewRig) -> None:
    rig = new_rig(keys=f"dora:{KEY}::2030-01-01T00:00:00Z\n")
    rig.services.clock.wall = MOMENT - 1
    client = served(rig, POST, POST)
    rig.services.clock.wall = MOMENT
    client.send(POST)

    assert statuses(client) == [200, 200, 401]
    assert code_of(client.responses[-1]) == "key_expired"


def test_wrong_keys_on_another_connection_make_the_whole_address_wait(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=2)
    client = served(rig, POST)
    elsewhere = rig.client(("203.0.113.10", 40000))
    elsewhere.send(POST)
    for _ in range(2):
        rig.send_request(request(body=b"{}", key="sk-nobody-0123456789"))
    client.send(POST)
    elsewhere.send(POST)
    rig.advance(60)
    client.send(POST)

    assert statuses(client) == [200, 429, 200]
    assert statuses(elsewhere) == [200, 200]


@pytest.mark.parametrize("failures", [0, 10], ids=["uncounted", "counted"])
def test_a_right_key_opens_nothing_for_the_wrong_one_behind_it(
    failures: int, new_rig: NewRig
) -> None:
    rig = new_rig(auth_failures_per_minute=failures)
    wrong = request(body=b"{}", key="sk-" + "x" * (len(KEY) - 3))
    client = served(rig, wrong, POST, wrong, wrong, POST)

    assert statuses(client) == [401, 200, 401, 401, 200]
    assert [r.key_id for r in rig.records] == ["-", "alice", "-", "-", "alice"]


def test_every_repeat_counts_against_its_key(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=3)
    client = served(rig, *[POST] * 4)
    rig.advance(60)
    client = served(rig, POST)
    client.send(POST)

    assert statuses(rig.clients[0]) == [200, 200, 200, 429]
    remaining = [a["x-ratelimit-remaining-requests"] for a in rig.clients[0].responses]
    assert remaining == ["2", "1", "0", "0"]
    assert [a["x-ratelimit-remaining-requests"] for a in client.responses] == ["2", "1"]


def test_a_guarded_path_of_our_own_asks_for_the_key_each_time(new_rig: NewRig) -> None:
    rig = new_rig(metrics_auth_enabled=True)
    metrics = request("GET", "/metrics")
    client = served(rig, POST, metrics, metrics)
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.services.key_store.load()
    client.send(metrics)

    assert statuses(client) == [200, 200, 200, 401]


def test_a_reload_that_removes_its_own_key_is_the_last_with_it(rig: Rig) -> None:
    reload = request("POST", "/reload", body=b"")
    client = served(rig, reload)
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    client.send(reload, reload, POST)
    rig.advance(REST_SECONDS)

    assert statuses(client) == [200, 200, 401, 401]


# Repeated: what else is each request's own --------------------------------------------------------


def test_a_client_s_own_id_is_every_repeat_s_and_nobody_else_s(rig: Rig) -> None:
    mine = request(*TARGET, "x-request-id: mine", body=b"{}")
    client = served(rig, mine, mine, POST, POST, mine)
    ids = [a["x-request-id"] for a in client.responses]

    assert ids[:2] == ["mine", "mine"] == [ids[4], "mine"]
    assert len(set(ids)) == 3
    assert [r.request_id for r in rig.records] == ids
    for found, message in zip(ids, rig.requests, strict=True):
        assert b"\r\nx-request-id: %b\r\n" % found.encode() in message


def test_every_repeat_that_expects_100_gets_one(rig: Rig) -> None:
    def head(length: int) -> bytes:
        return request(*TARGET, "Expect: 100-continue", f"Content-Length: {length}")

    client = served(rig)
    for length in (4, 4, 9):
        client.send(head(length))
        client.send(b"x" * length)
    client.send(head(4) + b"sent")

    assert statuses(client) == [100, 200] * 3 + [200]


def test_a_repeat_may_be_too_large(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=10)
    client = served(rig, request(body=b"x" * 10))
    client.send(request(body=b"x" * 11))

    assert statuses(client) == [200, 413]
    assert client.is_closed
    assert len(rig.requests) == 1


def test_a_repeat_may_hold_too_much_memory(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=10)
    client = served(rig, request(body=b"x" * 10))
    larger = request(body=b"x" * 11)
    client.send(larger[:-1], larger[-1:], POST)

    assert statuses(client) == [200, 503, 200]
    assert rig.is_at_rest


@pytest.mark.parametrize("order", [(GET, HEAD, GET, HEAD), (HEAD, GET, HEAD, GET)])
def test_head_and_get_in_turn_are_each_answered_as_what_they_are(
    order: tuple[bytes, ...], rig: Rig
) -> None:
    client = served(rig)
    for raw in order:
        before = len(client.received)
        client.send(raw)
        (response,) = read_responses(client.received[before:], is_head_request=raw is HEAD)

        assert response["content-length"] == "11"
        assert response.body == (b"" if raw is HEAD else OK_BODY)


def test_our_own_paths_are_answered_here_whatever_came_before(rig: Rig) -> None:
    ping = request("GET", "/ping")
    client = served(rig, POST, ping, ping, POST, ping)

    assert [a.body for a in client.responses] == [OK_BODY, b"", b"", OK_BODY, b""]
    assert len(rig.requests) == 2


def test_draining_that_begins_between_two_equal_requests_refuses_the_second(rig: Rig) -> None:
    client = served(rig, POST)
    rig.services.connections.is_draining = True
    client.send(POST)

    assert statuses(client) == [200, 503]
    assert code_of(client.responses[1]) == "draining"
    assert client.is_closed
    assert len(rig.requests) == 1


def test_draining_that_begins_while_a_repeat_waits_ends_with_the_first(rig: Rig) -> None:
    client = rig.send_request(POST, POST)
    rig.services.connections.is_draining = True
    rig.upstream.send(OK)

    assert client.response["connection"] == "close"
    assert client.is_closed
    assert len(rig.requests) == 1
    assert rig.is_at_rest


def test_an_engine_that_goes_between_two_equal_requests_is_noticed(rig: Rig) -> None:
    client = served(rig, GET)
    rig.engine(ChildState.FAILED)
    client.send(GET)
    rig.engine(ChildState.READY)
    client.send(GET)

    assert statuses(client) == [200, 503, 200]


def test_every_origin_is_told_its_own_rules(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("http://a.example", "http://b.example"))
    origins = ["a", "a", "b", "c", "c", "a", "b", "b"]
    client = served(rig, *(request(*TARGET, f"Origin: http://{o}.example") for o in origins))
    client.send(POST)

    told = [a.all("access-control-allow-origin") for a in client.responses]
    assert told == [[f"http://{o}.example"] if o != "c" else [] for o in origins] + [[]]


# Repeated: what looks like it in a refused body ---------------------------------------------------


def hides_itself(head: bytes) -> bytes:
    """A request whose body is its own head again, but for the length."""
    inner = head.replace(
        b"Content-Length: 0\r\n", b"Content-Length: 0\r\nX-Pad: " + b"x" * 70 + b"\r\n"
    )
    assert inner.count(b"Content-Length: 0") == 1
    return inner.replace(b"Content-Length: 0", b"Content-Length: %d" % len(inner)) + inner


REFUSED = {
    "no key": (401, request(body=b"", key=None)),
    "a wrong key": (401, request(body=b"", key="sk-nobody-0123456789")),
    "over its rate": (429, request(body=b"")),
    "not exposed": (403, request("POST", "/slots/0", body=b"")),
    "another method": (405, request("POST", "/ping", body=b"")),
    "answered here": (200, request("GET", "/ping", body=b"")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("status", "head"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_body_that_repeats_its_own_head_is_no_request(
    status: int, head: bytes, new_rig: NewRig
) -> None:
    data = hides_itself(head)
    for pieces in [(data + GET,), (data, GET), *splits(data + GET)]:
        rig = new_rig(max_requests_per_minute=1)
        served(rig, POST)
        client = rig.client()
        client.send(*pieces)

        assert statuses(client) == [status, 200]
        assert len(rig.requests) == 2
        assert rig.requests[1].startswith(b"GET /v1/health ")
        assert len(rig.records) == 3


@pytest.mark.parametrize("ahead", [True, False])
def test_a_refused_body_that_is_the_head_before_it_is_no_request(
    ahead: bool, new_rig: NewRig
) -> None:
    rig = new_rig(max_requests_per_minute=1)
    poison = request(body=b"{}") * 2  # what this very connection has been served
    refused = request(body=poison)
    pieces = (refused + GET,) if ahead else bytewise(refused + GET)
    client = served(rig, POST)
    client.send(*pieces)

    assert statuses(client) == [200, 429, 200]
    assert [r.split(b" ")[0] for r in rig.requests] == [b"POST", b"GET"]


def test_a_body_that_is_taken_may_be_its_own_head(rig: Rig) -> None:
    client = served(rig, hides_itself(request(body=b"")), POST)

    assert statuses(client) == [200, 200]
    assert len(rig.requests) == 2
    assert b"X-Pad: " in rig.requests[0].partition(b"\r\n\r\n")[2]


def test_behind_a_refusal_that_closes_a_repeat_is_not_read(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=10)
    client = served(rig, POST)
    client.send(request(body=b"x" * 11))
    client.send(POST)

    assert statuses(client) == [200, 413]
    assert len(rig.requests) == 1


def test_behind_a_head_that_is_refused_nothing_is_read_though_the_last_one_was_kept(
    rig: Rig,
) -> None:
    rig.respond_with(OK)
    client = rig.send_request()
    smuggled = request("GET", "/v1/health")
    client.send(request("POST", "/v1/chat/completions", "Expect: the-worst", body=smuggled))

    assert [response.status for response in client.responses] == [200, 417]
    assert client.is_closed
    assert len(rig.requests) == 1
