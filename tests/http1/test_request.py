"""The properties of heads, and the head that is forwarded."""

from __future__ import annotations

import pytest

from llama_gguf.http1.fields import read_request
from llama_gguf.http1.parser import parse_request
from llama_gguf.http1.request import Request, unread
from llama_gguf.http1.routes import Kind, Route

POST = b"POST /v1/completions?x=y HTTP/1.1\r\n"
HOST = b"Host: gateway.example\r\n"
ADDRESS = b"Host: engine.example\r\n"


def understood(raw: bytes) -> Request:
    head = parse_request(raw)
    return Request(
        head,
        cors=b"Vary: Origin\r\n",
        sorted_fields=read_request(head.fields, version=head.version),
        route=Route(Kind.PROXIED, "/v1/completions"),
        via=b"us",
    )


def request(*lines: bytes, first: bytes = POST) -> Request:
    return understood(b"".join((first, HOST, *lines, b"\r\n")))


def test_a_request_is_serialised_with_its_forwarded_fields() -> None:
    found = request(b"X-A: 1\r\n", b"Connection: close, X-Hop\r\n", b"X-Hop: 2\r\n", b"x-b:3\r\n")

    assert found.serialised(ADDRESS, b"req-1", b"body") == (
        b"POST /v1/completions?x=y HTTP/1.1\r\nHost: engine.example\r\nX-A: 1\r\nx-b: 3\r\n"
        b"x-request-id: req-1\r\nVia: 1.1 us\r\nContent-Length: 4\r\n\r\nbody"
    )


def test_a_request_can_be_reused_with_another_id_and_body() -> None:
    found = request(b"Content-Length: 4\r\n")
    first = found.serialised(ADDRESS, b"req-1", b"body")
    second = found.serialised(ADDRESS, b"req-2", bytearray(b"longer body"))

    assert second == first.replace(b"req-1", b"req-2").replace(b"h: 4", b"h: 11").replace(
        b"body", b"longer body"
    )
    assert found.serialised(ADDRESS, b"req-1", b"body") == first


@pytest.mark.parametrize(
    ("method", "line", "sends_length"),
    [
        (b"POST", b"", True),
        (b"PUT", b"", True),
        (b"PATCH", b"", True),
        (b"GET", b"", False),
        (b"HEAD", b"", False),
        (b"DELETE", b"", False),
        (b"OPTIONS", b"", False),
        (b"GET", b"Content-Length: 0\r\n", True),
        (b"DELETE", b"Transfer-Encoding: chunked\r\n", True),
    ],
)
def test_a_length_of_0_is_sent_for_methods_that_need_it(
    method: bytes, line: bytes, sends_length: bool
) -> None:
    found = request(line, first=method + b" /v1/x HTTP/1.1\r\n")
    message = found.serialised(ADDRESS, b"r", b"")

    assert (b"\r\nContent-Length: 0\r\n" in message) == sends_length
    assert message.endswith(b"\r\n\r\n")
    assert message.count(b"\r\n\r\n") == 1


def test_a_body_always_has_its_length() -> None:
    found = request(first=b"GET /v1/x HTTP/1.1\r\n")

    assert found.serialised(ADDRESS, b"r", b"x").endswith(b"\r\nContent-Length: 1\r\n\r\nx")


@pytest.mark.parametrize(
    ("version", "line", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: Close\r\n", False),
        (b"1.1", b"Connection: x, close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", False),
    ],
)
def test_a_connection_persists_by_its_version_and_the_client_s_word(
    version: bytes, line: bytes, keep_alive: bool
) -> None:
    found = request(line, first=b"GET / HTTP/%b\r\n" % version)

    assert found.keep_alive == keep_alive
    assert found.reads_chunks == (version == b"1.1")
    assert b"\r\nVia: %b us\r\n" % version in found.serialised(ADDRESS, b"r", b"")


@pytest.mark.parametrize(
    ("method", "is_head_request", "is_idempotent"),
    [
        (b"GET", False, True),
        (b"HEAD", True, True),
        (b"POST", False, False),
        (b"PUT", False, False),
        (b"DELETE", False, False),
    ],
)
def test_only_safe_methods_may_be_sent_twice(
    method: bytes, is_head_request: bool, is_idempotent: bool
) -> None:
    found = request(first=method + b" / HTTP/1.1\r\n")

    assert (found.is_head_request, found.is_idempotent) == (is_head_request, is_idempotent)


def test_a_client_s_own_request_id_is_known_and_not_forwarded_twice() -> None:
    found = request(b"X-Request-Id: mine\r\n")

    assert found.request_id == b"mine"
    assert found.serialised(ADDRESS, b"mine", b"").lower().count(b"x-request-id: ") == 1


def test_of_a_head_that_cannot_be_read_nothing_is_known() -> None:
    found = unread(b"Vary: Origin\r\n")

    assert (found.head.method_text, found.head.path_text, found.route.label) == (
        "-",
        "-",
        "refused",
    )
    assert (found.cors, found.request_id) == (b"Vary: Origin\r\n", None)
    assert found.route.kind is Kind.REFUSED
