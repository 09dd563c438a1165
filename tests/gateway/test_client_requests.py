"""What a request may look like, and what becomes of the ones that could be read in two ways."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.fakes import (
    BACKEND_KEY,
    KEY,
    OK,
    Answer,
    Rig,
    bytewise,
    chunk,
    code_of,
    request,
    splits,
    without_varying,
)
from tests.gateway.conftest import NewRig

AUTH = f"Authorization: Bearer {KEY}"
BODY = b'{"stream":false}'
SMUGGLED = request("GET", "/v1/models")


def post(
    *fields: str, body: bytes = BODY, host: str | None = "Host: a", version: str = "1.1"
) -> bytes:
    """A POST with exactly these fields, whatever they claim of *body*."""
    lines = [f"POST /v1/chat/completions HTTP/{version}", AUTH, *([host] if host else []), *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


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
    "a GET": request("GET", "/v1/models?x=y&z"),
    "a GET with a body": request("GET", "/v1/models", body=b"why"),
    "HTTP/1.0": request(body=BODY, version="1.0"),
    "HTTP/1.0 without Host": f"GET /v1/models HTTP/1.0\r\n{AUTH}\r\n\r\n".encode(),
    "a closing client": request("GET", "/v1/models", "Connection: close"),
    "a ping": b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n",
    "a ping with a body": b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "a preflight of everything": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "an absolute target": request("GET", "http://elsewhere.example:99/v1/models?q"),
    "an absolute target that is upper case": request("GET", "HTTP://x/v1/models"),
    "empty lines before the request": b"\r\n\r\n" + request("GET", "/v1/models"),
    "an offer of h2c": request(
        *("POST", "/v1/chat/completions", "Connection: Upgrade, HTTP2-Settings"),
        *("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
        body=BODY,
    ),
    "an offer of a WebSocket": request(
        "GET", "/v1/models", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"
    ),
    "no key": request(body=BODY, key=None),
    "a wrong key": request("POST", "/v1/embeddings", body=BODY, key="sk-nobody-0123456789"),
    "a path not exposed": request("GET", "/slots"),
    "two requests": request(body=BODY) + request("GET", "/v1/models"),
    "a small refused body and a request": request(body=BODY, key=None)
    + request("GET", "/v1/models"),
}


class Seen(NamedTuple):
    """What can be seen from outside."""

    answers: bytes
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
    client.leave()
    rig.shared.pool.retire_idle()
    rig.records.clear()
    rig.requests.clear()
    return seen


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_it_makes_no_difference_where_the_network_cuts_a_request(
    raw: bytes, new_rig: NewRig
) -> None:
    rig = new_rig(max_requests_per_minute=1_000_000, auth_failures_per_minute=0)
    rig.answer_with(OK)
    whole = run(rig, (raw,))

    for pieces in splits(raw):
        assert run(rig, pieces) == whole, pieces


KEPT = [raw for raw in GOOD.values() if b"HTTP/1.1" in raw and b": close" not in raw]


@pytest.mark.parametrize("first", KEPT, ids=[n for n, raw in GOOD.items() if raw in KEPT])
def test_no_request_depends_on_what_came_before_it_on_its_connection(
    first: bytes, new_rig: NewRig
) -> None:
    rig = new_rig(max_requests_per_minute=1_000_000, auth_failures_per_minute=0)
    rig.answer_with(OK)
    alone = run(rig, (first,))
    for raw in KEPT:
        then = run(rig, (raw,))
        both = run(rig, (first, raw))

        assert both.answers == alone.answers + then.answers
        assert both.requests == alone.requests + then.requests
        assert both.records == alone.records + then.records


@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 16, 1000])
def test_the_same_head_with_another_length_has_another_body(length: int, rig: Rig) -> None:
    rig.answer_with(OK)
    body = b"x" * length
    client = rig.ask(post(LENGTH), post(f"Content-Length: {length}", body=body), post(LENGTH))

    assert [a.status for a in client.answers] == [200, 200, 200]
    assert [r.partition(b"\r\n\r\n")[2] for r in rig.requests] == [BODY, body, BODY]
    assert b"\r\nContent-Length: %d\r\n" % length in rig.requests[1]
    assert [r.bytes_in for r in rig.records] == [len(BODY), length, len(BODY)]


def test_a_key_that_is_removed_is_refused_on_a_connection_that_used_it(rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask(post(LENGTH))
    rig.set_keys("")
    rig.shared.load_keys()
    client.send(post(LENGTH))

    assert [a.status for a in client.answers] == [200, 401]


def first_line_and_fields(raw: bytes) -> tuple[str, list[str], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    return first, fields, body


def test_a_request_reaches_the_engine_with_our_credentials_and_its_own_fields(rig: Rig) -> None:
    rig.ask(
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
    rig.ask(post(field))

    assert rig.upstream.received.endswith(BODY)


@pytest.mark.parametrize(
    "host",
    ["", "a", "a.example:80", "a:", "127.0.0.1:8000", "[::1]:8000", "a_b-c.d", "a "],
)
def test_a_decent_host_is_served(host: str, rig: Rig) -> None:
    rig.ask(post(LENGTH, host=f"Host: {host}"))

    assert len(rig.requests) == 1


def test_via_tells_the_version_that_the_client_spoke(rig: Rig) -> None:
    rig.ask(request(body=BODY, version="1.0"))

    assert b"\r\nVia: 1.0 llama-gguf\r\n" in rig.upstream.received
    assert b" HTTP/1.1\r\n" in rig.upstream.received


def test_fields_that_connection_names_end_here(rig: Rig) -> None:
    rig.ask(
        request(
            *("GET", "/v1/models", "X-Hop: 1", "X-Stays: 2", "Connection: keep-alive, x-hop ,,"),
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
    rig.ask(request("POST", "/v1/embeddings", f"Connection: {name}", body=BODY))

    assert f"\r\n{name}: ".encode() in rig.upstream.received
    assert rig.upstream.received.endswith(BODY)


def test_a_chunked_body_goes_on_with_its_length(rig: Rig) -> None:
    rig.ask(GOOD["chunks with extensions and a trailer"])

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
    rig.ask(request(method, "/anything"))

    assert (b"Content-Length: 0" in rig.upstream.received) is has_length


@pytest.mark.parametrize("sane", ["mine", "a.b:c_d-E9", "x" * 128])
def test_a_sane_request_id_of_the_client_is_kept(sane: str, rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask(request("GET", "/v1/models", f"X-Request-ID: {sane}"))

    assert client.answer["x-request-id"] == sane
    assert rig.records[0].request_id == sane
    assert f"x-request-id: {sane}\r\n".encode() in rig.upstream.received


@pytest.mark.parametrize("odd", ["", "a b", "x" * 129, "a\tb", 'a"b', "a\x80", "a=b", "a,b"])
def test_an_odd_request_id_is_replaced(odd: str, rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask(request("GET", "/v1/models", f"X-Request-ID: {odd}"))

    assert client.answer["x-request-id"].startswith("req-")
    assert rig.upstream.received.lower().count(b"x-request-id") == 1


def test_request_ids_differ(rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask(request("GET", "/v1/models") * 3)

    assert len({a["x-request-id"] for a in client.answers}) == 3


# What is refused ----------------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"
LENGTH = f"Content-Length: {len(BODY)}"

# Each is followed by a whole request, which must never be taken for one.
HOSTILE = {
    "length and chunked": (400, post(LENGTH, CHUNKED)),
    "chunked and length": (400, post(CHUNKED, LENGTH, body=chunk(BODY) + b"0\r\n\r\n")),
    "two lengths": (400, post(LENGTH, "Content-Length: 1")),
    "two equal lengths": (400, post(LENGTH, LENGTH)),
    "two lengths in one field": (400, post("Content-Length: 5, 5", body=b"12345")),
    "two lengths with a space": (400, post("Content-Length: 5 5", body=b"12345")),
    "a length with a plus": (400, post("Content-Length: +5", body=b"12345")),
    "a length with a minus": (400, post("Content-Length: -5", body=b"12345")),
    "a length with an underscore": (400, post("Content-Length: 1_0", body=b"1234567890")),
    "a hexadecimal length": (400, post("Content-Length: 0x5", body=b"12345")),
    "a length with a fraction": (400, post("Content-Length: 5.0", body=b"12345")),
    "a huge length": (400, post("Content-Length: 99999999999999999999999")),
    "a length beyond 64 bits": (400, post(f"Content-Length: {2**64 + 5}", body=b"12345")),
    "an empty length": (400, post("Content-Length:")),
    # Behind a good request it differs from that one's head in nothing but the digits.
    "an empty length behind a space": (400, post("Content-Length: ")),
    "a length of spaces": (400, post("Content-Length:   ")),
    "a length of digits of another script": (400, post("Content-Length: \xb2")),
    "chunked twice": (400, post(CHUNKED, CHUNKED)),
    "chunked, chunked": (400, post("Transfer-Encoding: chunked, chunked")),
    "chunked and identity": (400, post("Transfer-Encoding: chunked, identity")),
    "identity": (400, post("Transfer-Encoding: identity")),
    "gzip before chunked": (400, post("Transfer-Encoding: gzip, chunked")),
    "chunked in quotes": (400, post('Transfer-Encoding: "chunked"')),
    "xchunked": (400, post("Transfer-Encoding: xchunked")),
    "chunked with a tail": (400, post("Transfer-Encoding: chunked;q=1")),
    "chunked with a vertical tab": (400, post("Transfer-Encoding: \x0bchunked")),
    "no coding at all": (400, post("Transfer-Encoding:")),
    "chunked in HTTP/1.0": (400, post(CHUNKED, version="1.0")),
    "HTTP/0.9": (400, post(LENGTH, version="0.9")),
    "HTTP/1.2": (400, post(LENGTH, version="1.2")),
    "HTTP/2.0": (400, post(LENGTH, version="2.0")),
    "HTTP/9.9": (400, post(LENGTH, version="9.9")),
    "HTTP/1.10": (400, post(LENGTH, version="1.10")),
    "no version": (400, b"GET /v1/models\r\n\r\n"),
    "HTTP/2's preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a version in small letters": (400, b"GET /v1/models http/1.1\r\nHost: a\r\n\r\n"),
    "a space behind the version": (400, b"GET /v1/models HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "a bare CR in a value": (400, post(LENGTH, "X: a\rb")),
    "a bare LF in a value": (400, post(LENGTH, "X: a\nContent-Length: 99")),
    "a bare LF behind the request line": (400, b"GET /v1/models HTTP/1.1\nHost: a\r\n\r\n"),
    "a NUL in a value": (400, post(LENGTH, "X: a\0b")),
    "a NUL in a name": (400, post(LENGTH, "X\0Y: a")),
    "a NUL in the target": (400, b"GET /v1/mo\0dels HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a folded field": (400, post(LENGTH, "X: a\r\n b")),
    "a field folded with a tab": (400, post(LENGTH, "X: a\r\n\tb")),
    "a folded first field": (400, b"GET /v1/models HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n"),
    "a space before the colon": (400, post(f"Content-Length : {len(BODY)}")),
    "a tab before the colon": (400, post("Transfer-Encoding\t: chunked")),
    "no colon": (400, post(LENGTH, "nonsense")),
    "no name": (400, post(LENGTH, ": nonsense")),
    "a name with an obs-text byte": (400, post(LENGTH, "X\xe9: y")),
    "no Host": (400, post(LENGTH, host=None)),
    "two Hosts": (400, post(LENGTH, "Host: b")),
    "two equal Hosts": (400, post(LENGTH, "Host: a")),
    "two Hosts in HTTP/1.0": (400, post(LENGTH, "Host: b", version="1.0")),
    "a Host with a path": (400, post(LENGTH, host="Host: a/b")),
    "a Host with a user": (400, post(LENGTH, host="Host: a@b")),
    "a Host with a space": (400, post(LENGTH, host="Host: a b")),
    "a Host with a bad port": (400, post(LENGTH, host="Host: a:b")),
    "two Hosts in one field": (400, post(LENGTH, host="Host: a:1:2")),
    "a method in small letters": (400, b"get /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a method nobody knows": (400, b"BREW /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (405, b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"),
    "CONNECT with a path": (405, b"CONNECT /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    "TRACE": (405, request("TRACE", "/v1/models")),
    "TRACE with a Max-Forwards": (405, request("TRACE", "/v1/models", "Max-Forwards: 0")),
    "GET *": (400, request("GET", "*")),
    "a target without a slash": (400, request("GET", "v1/models")),
    "a target of another scheme": (400, request("GET", "ftp://a/v1/models")),
    "a target with a user": (400, request("GET", "http://u@a/v1/models")),
    "a target without authority": (400, request("GET", "http:///v1/models")),
    "obs-text in the target": (400, request("GET", "/v1/mod\xe9ls")),
    "obs-text in the query": (400, request("GET", "/v1/models?\xe9")),
    "an expectation nobody knows": (417, post(LENGTH, "Expect: the-best")),
    "two expectations": (417, post(LENGTH, "Expect: 100-continue, x")),
    # RTSP and ICE are other protocols that llhttp happens to know.
    "ICE": (400, b"SOURCE /v1/models ICE/1.0\r\nHost: a\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "raw"), HOSTILE.values(), ids=HOSTILE.keys())
def test_it_is_refused_behind_a_good_request_as_well(status: int, raw: bytes, rig: Rig) -> None:
    rig.answer_with(OK)
    for before in (post(LENGTH), post(body=b""), post(CHUNKED, body=chunk(BODY) + b"0\r\n\r\n")):
        rig.requests.clear()
        client = rig.ask(before, raw + SMUGGLED)

        assert [a.status for a in client.answers][1:] == [status]
        assert client.is_closed
        assert len(rig.requests) == 1


@pytest.mark.parametrize(("status", "raw"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(
    status: int, raw: bytes, rig: Rig
) -> None:
    for pieces in ((raw + SMUGGLED,), (raw, SMUGGLED), bytewise(raw + SMUGGLED)):
        client = rig.ask(*pieces)

        assert client.answer.status == status, pieces
        assert code_of(client.answer)
        assert client.answer["connection"] == "close"
        assert client.is_closed
        assert rig.requests == []
        assert rig.is_at_rest


AMBIGUOUS_PATHS = [
    "/v1/../slots",
    "/v1/./models",
    "/v1/models/..",
    "/v1//models",
    "//v1/models",
    "/v1%2fmodels",
    "/v1%2Fmodels",
    "/v1%5cmodels",
    "/v1\\models",
    "/v1/%2e%2e/slots",
    "/v1/.%2E/slots",
    "/v1/models%00",
    "/v1/models%",
    "/v1/models%zz",
    "/%70ing",
    "/healt%68",
    "/metric%73",
    "/reloa%64",
    "http://a/v1/../slots",
    # The engine's HTTP library cuts a target at its "#": this would reach /v1/streams and, with
    # POST, whatever EXPOSED_ROUTES keeps back.
    "/v1/streams#",
    "/v1/models#/load",
    "/ping#x",
]


@pytest.mark.parametrize("target", AMBIGUOUS_PATHS)
@pytest.mark.parametrize("routes", ["inference", "all"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_two_could_read_differently_is_refused(
    method: str, target: str, routes: str, new_rig: NewRig
) -> None:
    rig = new_rig(exposed_routes=routes)
    client = rig.ask(request(method, target, body=b""))

    assert client.answer.status == 400
    assert code_of(client.answer) == "bad_request"
    assert rig.requests == []


def test_the_path_goes_on_as_it_came(rig: Rig) -> None:
    rig.ask(request("GET", "/v1/mo%64els/%C3%A9?q=/../&%2f"))

    assert rig.upstream.received.startswith(b"GET /v1/mo%64els/%C3%A9?q=/../&%2f HTTP/1.1\r\n")


def test_the_authority_of_a_target_is_not_believed(rig: Rig) -> None:
    rig.ask(request("GET", "http://evil.example/v1/models"))

    assert rig.upstream.received.startswith(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n")
    assert b"evil" not in rig.upstream.received


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("GET", "/slots"), ("POST", "/slots/0?action=erase"), ("POST", "/props")),
        *(("POST", "/lora-adapters"), ("POST", "/models"), ("DELETE", "/models/x")),
        *(("POST", "/models/load"), ("POST", "/v1/models"), ("GET", "/tools")),
        *(("GET", "/cors-proxy"), ("POST", "/v1/streams/lookup"), ("DELETE", "/v1/stream")),
        *(("GET", "/"), ("GET", "/index.html"), ("POST", "/V1/chat/completions")),
    ],
)
def test_a_path_that_is_not_exposed_is_403(method: str, target: str, rig: Rig) -> None:
    client = rig.ask(request(method, target))

    assert client.answer.status == 403
    assert code_of(client.answer) == "route_not_exposed"
    assert rig.requests == []
    assert not client.is_closed


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/ping", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("GET", "/reload", "POST"),
    ],
)
def test_our_own_paths_answer_their_methods_only(
    method: str, path: str, allow: str, rig: Rig
) -> None:
    client = rig.ask(request(method, path))

    assert client.answer.status == 405
    assert code_of(client.answer) == "method_not_allowed"
    assert client.answer["allow"] == allow


# Sizes --------------------------------------------------------------------------------------------


def refused(rig: Rig, raw: bytes) -> Answer:
    """The answer to *raw*; checks that it is the end of the connection, however it is cut."""
    client = rig.ask(raw)
    assert client.is_closed
    assert rig.requests == []
    assert rig.ask(*bytewise(raw)).answer.status == client.answer.status
    return client.answer


def test_a_request_line_up_to_its_limit_is_served(new_rig: NewRig) -> None:
    rig = new_rig(max_request_line_size=200)
    line = len("GET /v1/models? HTTP/1.1")
    client = rig.ask(request("GET", "/v1/models?" + "x" * (200 - line)))

    assert len(rig.requests) == 1
    assert client.received == b""


def test_a_request_line_over_its_limit_is_414(new_rig: NewRig) -> None:
    rig = new_rig(max_request_line_size=200)
    line = len("GET /v1/models? HTTP/1.1")
    answer = refused(rig, request("GET", "/v1/models?" + "x" * (201 - line)))

    assert answer.status == 414
    assert code_of(answer) == "uri_too_long"


def test_a_request_line_without_end_is_414(new_rig: NewRig) -> None:
    answer = refused(new_rig(max_request_line_size=200), b"GET /" + b"x" * 300)

    assert answer.status == 414


def test_a_field_line_up_to_its_limit_is_served(new_rig: NewRig) -> None:
    rig = new_rig(max_header_line_size=200)
    rig.ask(request("GET", "/v1/models", "X: " + "x" * 197))

    assert len(rig.requests) == 1


def test_a_field_line_over_its_limit_is_431(new_rig: NewRig) -> None:
    rig = new_rig(max_header_line_size=200)
    answer = refused(rig, request("GET", "/v1/models", "X: " + "x" * 198))

    assert answer.status == 431
    assert code_of(answer) == "request_header_fields_too_large"


def test_a_field_line_without_end_is_431(new_rig: NewRig) -> None:
    rig = new_rig(max_header_line_size=200)
    answer = refused(rig, b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * 300)

    assert answer.status == 431


def test_fields_without_end_are_431(rig: Rig) -> None:
    line = b"X: " + b"x" * 8000 + b"\r\n"
    client = rig.ask(b"GET /v1/models HTTP/1.1\r\n", *[line] * 20)

    assert client.answer.status == 431
    assert client.is_closed


def test_as_many_fields_as_are_allowed_are_served(new_rig: NewRig) -> None:
    rig = new_rig(max_headers=10)
    rig.ask(request("GET", "/v1/models", *(f"X-{n}: 1" for n in range(8))))

    assert len(rig.requests) == 1


def test_one_field_more_than_allowed_is_431(new_rig: NewRig) -> None:
    rig = new_rig(max_headers=10)
    answer = refused(rig, request("GET", "/v1/models", *(f"X-{n}: 1" for n in range(9))))

    assert answer.status == 431
    assert code_of(answer) == "request_header_fields_too_large"


def test_a_body_over_its_limit_is_413_before_it_is_read(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    answer = refused(rig, request(body=b"x" * 101))

    assert answer.status == 413
    assert code_of(answer) == "payload_too_large"
    assert rig.shared.body_bytes == 0


def test_a_body_up_to_its_limit_is_served(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    rig.ask(request(body=b"x" * 100))
    rig.ask(
        request("POST", "/v1/embeddings", CHUNKED) + chunk(b"x" * 60) * 1 + chunk(b"x" * 40),
        b"0\r\n\r\n",
    )

    assert len(rig.requests) == 2


def test_a_chunked_body_is_413_as_soon_as_it_is_over_its_limit(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    answer = refused(rig, request("POST", "/v1/embeddings", CHUNKED) + chunk(b"x" * 60) * 2)

    assert answer.status == 413
    assert rig.shared.body_bytes == 0


def test_a_chunk_that_claims_more_than_all_memory_is_413_when_it_comes(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    client = rig.ask(request("POST", "/v1/embeddings", CHUNKED) + b"fffffffffffffff\r\n")
    assert client.received == b""

    client.send(b"x" * 101)

    assert client.answer.status == 413


MALFORMED_CHUNKS = {
    "a size with 0x": b"0x5\r\n12345\r\n0\r\n\r\n",
    "a size with a sign": b"+5\r\n12345\r\n0\r\n\r\n",
    "a negative size": b"-5\r\n12345\r\n0\r\n\r\n",
    "a size with an underscore": b"1_0\r\n1234567890123456\r\n0\r\n\r\n",
    "a size with a space before": b" 5\r\n12345\r\n0\r\n\r\n",
    "a size with a space behind": b"5 \r\n12345\r\n0\r\n\r\n",
    "no size": b"\r\n12345\r\n0\r\n\r\n",
    "only an extension": b";a=b\r\n12345\r\n0\r\n\r\n",
    "no hexadecimal digit": b"g\r\n12345\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000005\r\n12345\r\n0\r\n\r\n",
    "a bare LF behind the size": b"5\n12345\r\n0\r\n\r\n",
    "a bare CR in the extension": b"5;a\rb\r\n12345\r\n0\r\n\r\n",
    "a bare LF in the extension": b"5;a\n12345\r\n0\r\n\r\n",
    "a NUL in the extension": b"5;a\0\r\n12345\r\n0\r\n\r\n",
    "data longer than its size": b"5\r\n123456\r\n0\r\n\r\n",
    "any two bytes behind the data": b"5\r\n12345XX0\r\n\r\n",
    "a bare LF behind the data": b"5\r\n12345\n0\r\n\r\n",
    "data shorter than its size": b"5\r\n123\r\n0\r\n\r\n",
    "an extension without end": b"5;" + b"a" * 2000,
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "a trailer with a space before the colon": b"0\r\nX : a\r\n\r\n",
    "a trailer with a bare CR": b"0\r\nX: a\rb\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: a\n\r\n",
    "a trailer line without end": b"0\r\nX: " + b"a" * 2000,
    "trailers without end": b"0\r\n" + b"X: abcdefgh\r\n" * 1000,
}


@pytest.mark.parametrize("body", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS.keys())
def test_a_malformed_chunked_body_is_400_and_ends_the_connection(body: bytes, rig: Rig) -> None:
    raw = request("POST", "/v1/embeddings", CHUNKED) + body
    for pieces in ((raw,), (raw + SMUGGLED,), bytewise(raw)):
        client = rig.ask(*pieces)

        assert client.answer.status == 400, pieces
        assert client.is_closed
        assert rig.requests == []
        assert rig.is_at_rest
