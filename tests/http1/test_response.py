from __future__ import annotations

import pytest

from llama_gguf.http1.fields import Framing, read_response
from llama_gguf.http1.parser import parse_response
from llama_gguf.http1.response import Response


def parsed(raw: bytes, *, is_head_request: bool = False) -> Response:
    head = parse_response(raw)
    return Response(
        head, read_response(head.fields, status=head.status, is_head_request=is_head_request)
    )


def test_a_response_begins_with_the_engine_s_status_and_fields() -> None:
    found = parsed(b"HTTP/1.0 404 Not Here\r\nX-A: 1\r\nServer: x\r\nContent-Length: 3\r\n\r\n")

    assert found.opening == b"HTTP/1.1 404 Not Here\r\nX-A: 1\r\n"
    assert (found.status, found.framing) == (404, Framing.LENGTH)


@pytest.mark.parametrize(
    ("head", "framing", "has_length", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", Framing.LENGTH, True, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", Framing.CHUNKED, False, True),
        (b"HTTP/1.1 200 OK\r\n", Framing.CLOSE, False, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n", Framing.LENGTH, True, False),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n",
            Framing.LENGTH,
            True,
            False,
        ),
        (b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n", Framing.NONE, True, True),
        (b"HTTP/1.1 204 Nothing\r\nContent-Length: 5\r\n", Framing.NONE, False, True),
        (b"HTTP/1.1 204 Nothing\r\n", Framing.NONE, False, True),
    ],
)
def test_a_response_s_framing_determines_whether_its_connection_is_reused(
    head: bytes, framing: Framing, has_length: bool, keep_alive: bool
) -> None:
    found = parsed(head + b"\r\n")

    assert (found.framing, found.has_length) == (framing, has_length)
    assert found.keep_alive == keep_alive


def test_a_response_to_head_has_a_length_and_no_body() -> None:
    found = parsed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", is_head_request=True)

    assert (found.framing, found.has_length, found.keep_alive) == (Framing.NONE, True, True)


@pytest.mark.parametrize(
    ("line", "has_date", "is_event_stream"),
    [
        (b"", False, False),
        (b"date: x\r\n", True, False),
        (b"Content-Type: Text/Event-Stream; charset=utf-8\r\n", False, True),
        (b"Content-Type: text/plain\r\n", False, False),
    ],
)
def test_a_response_s_fields_determine_its_other_properties(
    line: bytes, has_date: bool, is_event_stream: bool
) -> None:
    found = parsed(b"HTTP/1.1 200 OK\r\n%b\r\n" % line)

    assert (found.has_date, found.is_event_stream) == (has_date, is_event_stream)
