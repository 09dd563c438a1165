"""Limits of the request line, the fields and the body, to the byte."""

from __future__ import annotations

from tests.gateway.test_client_requests import CHUNKED
from tests.support.fakes import NewRig, Rig
from tests.support.messages import Response, bytewise, chunk, code_of, request


def refused(rig: Rig, raw: bytes) -> Response:
    """The answer to *raw*; checks that it is the end of the connection, however it is cut."""
    client = rig.send_request(raw)
    assert client.is_closed
    assert rig.requests == []
    assert rig.send_request(*bytewise(raw)).response.status == client.response.status
    return client.response


def test_a_request_line_up_to_its_limit_is_served(new_rig: NewRig) -> None:
    rig = new_rig(max_request_line_size=200)
    line = len("GET /v1/health? HTTP/1.1")
    client = rig.send_request(request("GET", "/v1/health?" + "x" * (200 - line)))

    assert len(rig.requests) == 1
    assert client.received == b""


def test_a_request_line_over_its_limit_is_414(new_rig: NewRig) -> None:
    rig = new_rig(max_request_line_size=200)
    line = len("GET /v1/health? HTTP/1.1")
    response = refused(rig, request("GET", "/v1/health?" + "x" * (201 - line)))

    assert response.status == 414
    assert code_of(response) == "uri_too_long"


def test_a_request_line_without_end_is_414(new_rig: NewRig) -> None:
    response = refused(new_rig(max_request_line_size=200), b"GET /" + b"x" * 300)

    assert response.status == 414


def test_a_field_line_up_to_its_limit_is_served(new_rig: NewRig) -> None:
    rig = new_rig(max_header_line_size=200)
    rig.send_request(request("GET", "/v1/health", "X: " + "x" * 197))

    assert len(rig.requests) == 1


def test_a_field_line_over_its_limit_is_431(new_rig: NewRig) -> None:
    rig = new_rig(max_header_line_size=200)
    response = refused(rig, request("GET", "/v1/health", "X: " + "x" * 198))

    assert response.status == 431
    assert code_of(response) == "request_header_fields_too_large"


def test_a_field_line_without_end_is_431(new_rig: NewRig) -> None:
    rig = new_rig(max_header_line_size=200)
    response = refused(rig, b"GET /v1/health HTTP/1.1\r\nX: " + b"x" * 300)

    assert response.status == 431


def test_fields_without_end_are_431(rig: Rig) -> None:
    line = b"X: " + b"x" * 8000 + b"\r\n"
    client = rig.send_request(b"GET /v1/health HTTP/1.1\r\n", *[line] * 20)

    assert client.response.status == 431
    assert client.is_closed


def test_as_many_fields_as_are_allowed_are_served(new_rig: NewRig) -> None:
    rig = new_rig(max_headers=10)
    rig.send_request(request("GET", "/v1/health", *(f"X-{n}: 1" for n in range(8))))

    assert len(rig.requests) == 1


def test_one_field_more_than_allowed_is_431(new_rig: NewRig) -> None:
    rig = new_rig(max_headers=10)
    response = refused(rig, request("GET", "/v1/health", *(f"X-{n}: 1" for n in range(9))))

    assert response.status == 431
    assert code_of(response) == "request_header_fields_too_large"


def test_a_body_over_its_limit_is_413_before_it_is_read(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    response = refused(rig, request(body=b"x" * 101))

    assert response.status == 413
    assert code_of(response) == "payload_too_large"
    assert rig.services.body_memory.used == 0


def test_a_body_up_to_its_limit_is_served(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    rig.send_request(request(body=b"x" * 100))
    rig.send_request(
        request("POST", "/v1/embeddings", CHUNKED) + chunk(b"x" * 60) * 1 + chunk(b"x" * 40),
        b"0\r\n\r\n",
    )

    assert len(rig.requests) == 2


def test_a_chunked_body_is_413_as_soon_as_it_is_over_its_limit(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    response = refused(rig, request("POST", "/v1/embeddings", CHUNKED) + chunk(b"x" * 60) * 2)

    assert response.status == 413
    assert rig.services.body_memory.used == 0


def test_a_chunk_that_claims_more_than_all_memory_is_413_when_it_comes(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=100)
    client = rig.send_request(request("POST", "/v1/embeddings", CHUNKED) + b"fffffffffffffff\r\n")
    assert client.received == b""

    client.send(b"x" * 101)

    assert client.response.status == 413
