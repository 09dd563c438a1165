"""What a browser may read."""

from __future__ import annotations

import pytest

from llama_gguf.engines.status import ChildState
from tests.support.fakes import NewRig, Rig
from tests.support.keys import KEY
from tests.support.messages import STREAM_HEAD, Response, event, request

ORIGIN = "Origin: https://app.example"


def get(rig: Rig, target: str, *fields: str, key: str | None = None) -> Response:
    return rig.send_request(request("GET", target, *fields, key=key)).response


def cors_of(response: Response) -> dict[str, str]:
    return {n: v for n, v in response.fields if n.lower().startswith("access-control-")}


EVIL = (
    b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: http://evil.example\r\n"
    b"Access-Control-Allow-Credentials: true\r\nContent-Length: 0\r\n\r\n"
)


def test_without_cors_no_answer_has_its_fields(rig: Rig) -> None:
    rig.respond_with(EVIL)

    for key in (KEY, None):
        assert cors_of(get(rig, "/v1/health", ORIGIN, key=key)) == {}


@pytest.mark.parametrize("key", [KEY, None])
def test_an_allowed_origin_is_told_so_on_every_answer(key: str | None, new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("https://app.example", "https://b.example"))
    rig.respond_with(EVIL)
    response = get(rig, "/v1/health", ORIGIN, key=key)

    assert response["access-control-allow-origin"] == "https://app.example"
    assert response["vary"] == "Origin"
    assert "retry-after" in response["access-control-expose-headers"]
    assert "x-request-id" in response["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "null", "https://APP.example"]
)
def test_another_origin_is_told_nothing(origin: str, new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("https://app.example",))
    rig.respond_with(EVIL)
    response = get(rig, "/v1/health", f"Origin: {origin}", key=KEY)

    assert cors_of(response) == {}
    assert response["vary"] == "Origin"


def test_a_star_is_for_everybody(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("*",))
    rig.respond_with(EVIL)

    assert get(rig, "/v1/health", ORIGIN, key=KEY)["access-control-allow-origin"] == "*"
    assert get(rig, "/ping")["access-control-allow-origin"] == "*"


REFUSED = {
    401: request("POST", "/v1/embeddings", ORIGIN, key=None, body=b"{}"),
    403: request("POST", "/slots/1", ORIGIN),
    405: request("POST", "/ping", ORIGIN),
    413: request("POST", "/v1/embeddings", ORIGIN, "Content-Length: 999999999"),
    417: request("POST", "/v1/embeddings", ORIGIN, "Expect: x"),
    431: request("GET", "/v1/health", ORIGIN, *["X: y"] * 99),
}


@pytest.mark.parametrize(("status", "raw"), REFUSED.items())
def test_a_browser_can_read_what_is_refused(status: int, raw: bytes, new_rig: NewRig) -> None:
    response = new_rig(cors_origins=("https://app.example",)).send_request(raw).response

    assert response.status == status
    assert response["access-control-allow-origin"] == "https://app.example"


def test_a_browser_can_read_what_the_engine_made_fail(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("*",), max_requests_per_minute=2, max_replays=0)
    dead = rig.send_request(request("POST", "/v1/embeddings", ORIGIN, body=b"{}"))
    rig.upstream.close()
    slow = rig.send_request(request("POST", "/v1/embeddings", ORIGIN, body=b"{}"))
    limited = rig.send_request(request("POST", "/v1/embeddings", ORIGIN, body=b"{}"))
    rig.advance(301)

    for client, status in ((dead, 502), (slow, 504), (limited, 429)):
        assert client.response.status == status
        assert client.response["access-control-allow-origin"] == "*"


def test_a_stream_has_its_cors_fields_in_its_head(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("*",))
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))

    assert client.response["access-control-allow-origin"] == "*"


def preflight(rig: Rig, *fields: str, target: str = "/v1/chat/completions") -> Response:
    return rig.send_request(request("OPTIONS", target, *fields, key=None)).response


def test_a_preflight_needs_no_key_and_no_engine_and_echoes_what_is_asked(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("https://app.example",), state=ChildState.FAILED)
    names = "authorization, x-stainless-os, anthropic-version, x-api-key"
    response = preflight(
        rig,
        ORIGIN,
        "Access-Control-Request-Method: POST",
        f"Access-Control-Request-Headers: {names}",
    )

    assert response.status == 204
    assert response["access-control-allow-origin"] == "https://app.example"
    assert response["access-control-allow-headers"] == names
    assert "POST" in response["access-control-allow-methods"]
    assert int(response["access-control-max-age"]) > 0
    assert "content-length" not in response
    assert rig.dials == []


def test_a_preflight_of_another_origin_is_granted_nothing(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("https://app.example",))
    response = preflight(rig, "Origin: https://evil.example", "Access-Control-Request-Method: POST")

    assert response.status == 204
    assert cors_of(response) == {}


def test_a_preflight_without_cors_is_granted_nothing(rig: Rig) -> None:
    response = preflight(rig, ORIGIN, "Access-Control-Request-Method: POST")

    assert response.status == 204
    assert cors_of(response) == {}


def test_names_in_a_preflight_are_not_echoed_when_they_are_odd(new_rig: NewRig) -> None:
    rig = new_rig(cors_origins=("*",))
    odd = 'Access-Control-Request-Headers: a"; b=<c>'
    response = preflight(rig, ORIGIN, "Access-Control-Request-Method: POST", odd)

    assert "access-control-allow-headers" not in response


@pytest.mark.parametrize("target", ["*", "/slots", "/ping", "/v1/../x"])
def test_options_never_reaches_the_engine(target: str, new_rig: NewRig) -> None:
    rig = new_rig(exposed_routes="all")
    response = preflight(rig, target=target)

    assert response.status == 204
    assert "POST" in response["allow"]
    assert rig.dials == []
