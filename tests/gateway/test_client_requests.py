"""Requests that are served: what the engine gets of them, wherever the network cuts them."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.support.fakes import NewRig, Rig
from tests.support.keys import BACKEND_KEY, KEY
from tests.support.messages import OK, chunk, request, splits, without_varying

AUTH = f"Authorization: Bearer {KEY}"
BODY = b'{"stream":false}'


def post(
    *fields: str, body: bytes = BODY, host: str | None = "Host: a", version: str = "1.1"
) -> bytes:
    """A POST with exactly these fields, whatever they claim of *body*."""
    lines = [f"POST /v1/chat/completions HTTP/{version}", AUTH, *([host] if host else []), *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


CHUNKED = "Transfer-Encoding: chunked"
LENGTH = f"Content-Length: {len(BODY)}"

GOOD = {
    "a POST with a length": request(body=BODY),
    "a POST in chunks": request("POST", "/v1/embeddings", "Transfer-Encoding: chunked")
    + chunk(BODY[:5])
    + chunk(BODY[5:])
    + b"0\r\n\r\n",
    "chunks with extensions and a trailer": request(
        "POST", "/v1/embeddings", "Transfer-Encoding: Chunked", "Trailer: X-Sum"
    )
    + b'010;a=b;c="d"\r\n'
    + BODY
    + b"\r\n0;last\r\nX-Sum: 1\r\n\r\n",
    "an empty POST": request(body=b""),
    "a POST without any length": request(),
    "a GET": request("GET", "/v1/health?x=y&z"),
    "a GET with a body": request("GET", "/v1/health", body=b"why"),
    "HTTP/1.0": request(body=BODY, version="1.0"),
    "HTTP/1.0 without Host": f"GET /v1/health HTTP/1.0\r\n{AUTH}\r\n\r\n".encode(),
    "a closing client": request("GET", "/v1/health", "Connection: close"),
    "a ping": b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n",
    "a ping with a body": b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "a preflight of everything": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "an absolute target": request("GET", "http://elsewhere.example:99/v1/health?q"),
    "an absolute target that is upper case": request("GET", "HTTP://x/v1/health"),
    "empty lines before the request": b"\r\n\r\n" + request("GET", "/v1/health"),
    "an offer of h2c": request(
        *("POST", "/v1/chat/completions", "Connection: Upgrade, HTTP2-Settings"),
        *("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
        body=BODY,
    ),
    "an offer of a WebSocket": request(
        "GET", "/v1/health", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"
    ),
    "no key": request(body=BODY, key=None),
    "a wrong key": request("POST", "/v1/embeddings", body=BODY, key="sk-nobody-0123456789"),
    "a path not exposed": request("GET", "/slots"),
    "two requests": request(body=BODY) + request("GET", "/v1/health"),
    "a small refused body and a request": request(body=BODY, key=None)
    + request("GET", "/v1/health"),
}


class Seen(NamedTuple):
    """What can be seen from outside."""

    responses: bytes
    requests: list[bytes]
    records: list[tuple[object, ...]]
    is_closed: bool
    was_cut: bool


def run(rig: Rig, pieces: tuple[bytes, ...]) -> Seen:
    """Everything that can be seen of *pieces*. Leaves the rig as it was."""
    client = rig.client()
    client.send(*pieces)
    seen = Seen(
        without_varying(client.received),
        [without_varying(r) for r in rig.requests],
        [(r.status, r.path, r.bytes_in, r.bytes_out, r.outcome) for r in rig.records],
        client.is_closed,
        client.was_cut,
    )
    assert rig.is_at_rest
    client.disconnect()
    rig.replica.pool.retire_idle()
    rig.records.clear()
    rig.requests.clear()
    return seen


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_it_makes_no_difference_where_the_network_cuts_a_request(
    raw: bytes, new_rig: NewRig
) -> None:
    rig = new_rig(max_requests_per_minute=1_000_000, auth_failures_per_minute=0)
    rig.respond_with(OK)
    whole = run(rig, (raw,))

    for pieces in splits(raw):
        assert run(rig, pieces) == whole, pieces


KEPT = [raw for raw in GOOD.values() if b"HTTP/1.1" in raw and b": close" not in raw]


@pytest.mark.parametrize("first", KEPT, ids=[n for n, raw in GOOD.items() if raw in KEPT])
def test_no_request_depends_on_what_came_before_it_on_its_connection(
    first: bytes, new_rig: NewRig
) -> None:
    rig = new_rig(max_requests_per_minute=1_000_000, auth_failures_per_minute=0)
    rig.respond_with(OK)
    alone = run(rig, (first,))
    for raw in KEPT:
        then = run(rig, (raw,))
        both = run(rig, (first, raw))

        assert both.responses == alone.responses + then.responses
        assert both.requests == alone.requests + then.requests
        assert both.records == alone.records + then.records


@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 16, 1000])
def test_the_same_head_with_another_length_has_another_body(length: int, rig: Rig) -> None:
    rig.respond_with(OK)
    body = b"x" * length
    client = rig.send_request(
        post(LENGTH), post(f"Content-Length: {length}", body=body), post(LENGTH)
    )

    assert [a.status for a in client.responses] == [200, 200, 200]
    assert [r.partition(b"\r\n\r\n")[2] for r in rig.requests] == [BODY, body, BODY]
    assert b"\r\nContent-Length: %d\r\n" % length in rig.requests[1]
    assert [r.bytes_in for r in rig.records] == [len(BODY), length, len(BODY)]


def test_a_key_that_is_removed_is_refused_on_a_connection_that_used_it(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(post(LENGTH))
    rig.set_keys("")
    rig.services.key_store.load()
    client.send(post(LENGTH))

    assert [a.status for a in client.responses] == [200, 401]


def first_line_and_fields(raw: bytes) -> tuple[str, list[str], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    return first, fields, body


def test_a_request_reaches_the_engine_with_our_credentials_and_its_own_fields(rig: Rig) -> None:
    rig.send_request(
        request(
            *("POST", "/v1/chat/completions?a=%20b", "X-Custom: one", "x-custom: two"),
            *("Accept-Encoding: gzip", "X-Request-Id: mine-1", "TE: trailers", "Keep-Alive: 5"),
            *("Proxy-Authorization: Basic x", "Proxy-Connection: keep-alive", "Trailer: a"),
            body=BODY,
        )
    )

    first, fields, body = first_line_and_fields(rig.upstream.received)
    assert first == "POST /v1/chat/completions?a=%20b HTTP/1.1"
    assert body == BODY
    assert fields == [
        "Host: 127.0.0.1:8080",
        f"Authorization: Bearer {BACKEND_KEY}",
        "X-Custom: one",
        "x-custom: two",
        "Accept-Encoding: gzip",
        "x-request-id: mine-1",
        "Via: 1.1 llama-gguf",
        f"Content-Length: {len(BODY)}",
    ]


@pytest.mark.parametrize(
    "field",
    [
        f"Content-Length:{len(BODY)}",
        f"Content-Length: \t{len(BODY)}",
        f"content-length: 000{len(BODY)}",
        f"Content-Length: {len(BODY)} ",
        f"Content-Length: {len(BODY)}\t",
    ],
)
def test_a_length_may_have_space_around_it(field: str, rig: Rig) -> None:
    rig.send_request(post(field))

    assert rig.upstream.received.endswith(BODY)


@pytest.mark.parametrize("space", [" ", "\t", " \t ", "\t\t"])
def test_chunked_may_have_space_around_it(space: str, rig: Rig) -> None:
    wire = chunk(BODY) + b"0\r\n\r\n"
    rig.respond_with(OK)
    client = rig.client()
    for _ in range(2):  # the second is one that was seen before
        client.send(post(f"Transfer-Encoding:{space}chunked{space}", body=wire))

    assert [response.status for response in client.responses] == [200, 200]
    for received in rig.requests:
        _, fields, body = first_line_and_fields(received)
        assert body == BODY
        assert f"Content-Length: {len(BODY)}" in fields
        assert not any(field.lower().startswith("transfer-") for field in fields)


@pytest.mark.parametrize("space", [" ", "\t", " \t"])
def test_expect_and_connection_may_have_space_around_them(space: str, rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.client()
    fields = (LENGTH, f"Expect:{space}100-continue{space}", f"Connection:{space}close{space}")
    client.send(post(*fields, body=b""))
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"

    client.send(BODY)
    assert client.is_closed
    assert len(rig.requests) == 1


@pytest.mark.parametrize(
    "host",
    ["", "a", "a.example:80", "a:", "127.0.0.1:8000", "[::1]:8000", "a_b-c.d", "a ", "\ta \t"],
)
def test_a_decent_host_is_served(host: str, rig: Rig) -> None:
    rig.send_request(post(LENGTH, host=f"Host: {host}"))

    assert len(rig.requests) == 1


def test_via_tells_the_version_that_the_client_spoke(rig: Rig) -> None:
    rig.send_request(request(body=BODY, version="1.0"))

    assert b"\r\nVia: 1.0 llama-gguf\r\n" in rig.upstream.received
    assert b" HTTP/1.1\r\n" in rig.upstream.received


def test_fields_that_connection_names_end_here(rig: Rig) -> None:
    rig.send_request(
        request(
            *("GET", "/v1/health", "X-Hop: 1", "X-Stays: 2", "Connection: keep-alive, x-hop ,,"),
            "Connection: X-Other",
            "x-other: 3",
        )
    )

    assert b"X-Stays: 2" in rig.upstream.received
    assert b"x-hop" not in rig.upstream.received.lower()
    assert b"x-other" not in rig.upstream.received.lower()
    assert b"connection" not in rig.upstream.received.lower()


@pytest.mark.parametrize("name", ["Authorization", "Host", "Content-Length", "x-request-id"])
def test_connection_cannot_take_away_what_the_gateway_adds(name: str, rig: Rig) -> None:
    rig.send_request(request("POST", "/v1/embeddings", f"Connection: {name}", body=BODY))

    assert f"\r\n{name}: ".encode() in rig.upstream.received
    assert rig.upstream.received.endswith(BODY)


def test_a_chunked_body_goes_on_with_its_length(rig: Rig) -> None:
    rig.send_request(GOOD["chunks with extensions and a trailer"])

    _, fields, body = first_line_and_fields(rig.upstream.received)
    assert body == BODY
    assert f"Content-Length: {len(BODY)}" in fields
    assert not any(f.lower().startswith(("transfer-", "trailer", "x-sum")) for f in fields)


@pytest.mark.parametrize(
    ("method", "has_length"), [("GET", False), ("POST", True), ("PUT", True), ("DELETE", False)]
)
def test_only_methods_that_have_a_body_get_a_length_without_one(
    method: str, has_length: bool, new_rig: NewRig
) -> None:
    rig = new_rig(exposed_routes="all")
    rig.send_request(request(method, "/anything"))

    assert (b"Content-Length: 0" in rig.upstream.received) is has_length


@pytest.mark.parametrize("sane", ["mine", "a.b:c_d-E9", "x" * 128])
def test_a_sane_request_id_of_the_client_is_kept(sane: str, rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(request("GET", "/v1/health", f"X-Request-ID: {sane}"))

    assert client.response["x-request-id"] == sane
    assert rig.records[0].request_id == sane
    assert f"x-request-id: {sane}\r\n".encode() in rig.upstream.received


@pytest.mark.parametrize("odd", ["", "a b", "x" * 129, "a\tb", 'a"b', "a\x80", "a=b", "a,b"])
def test_an_odd_request_id_is_replaced(odd: str, rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(request("GET", "/v1/health", f"X-Request-ID: {odd}"))

    assert client.response["x-request-id"].startswith("req-")
    assert rig.upstream.received.lower().count(b"x-request-id") == 1


def test_request_ids_differ(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(request("GET", "/v1/health") * 3)

    assert len({a["x-request-id"] for a in client.responses}) == 3
