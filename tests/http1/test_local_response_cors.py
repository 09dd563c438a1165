from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.fields import Fields
from llama_gguf.http1.local_response import Cors
from tests.http1.test_local_response import fields_of

APP = "https://app.example"
ORIGIN = APP.encode()
PREFLIGHT: Fields = [
    (b"Origin", ORIGIN),
    (b"Access-Control-Request-Method", b"POST"),
    (b"Access-Control-Request-Headers", b"authorization, x-stainless-os, anthropic-version"),
]
origins = st.none() | st.sampled_from([ORIGIN, b"null", b"*", b""]) | st.binary(max_size=40)


@given(origin=origins)
def test_without_cors_there_are_no_cors_fields(origin: bytes | None) -> None:
    cors = Cors(())

    assert cors.fields(origin) == b""
    assert list(fields_of(cors.preflight(PREFLIGHT, origin))) == ["allow"]


def test_a_listed_origin_is_named_and_can_read_the_fields_that_retries_need() -> None:
    fields = fields_of([Cors((APP, "https://b.example")).fields(ORIGIN)])

    assert fields["access-control-allow-origin"] == APP
    assert fields["vary"] == "Origin"
    exposed = fields["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "retry-after-ms"} <= set(exposed)


@pytest.mark.parametrize(
    "origin",
    [
        *(None, b"null", b"", b"*", b"https://evil.example", ORIGIN + b".evil.example"),
        *(ORIGIN + b"\r\nX: y", ORIGIN + b"/", b"http://app.example", ORIGIN.upper()),
    ],
    ids=repr,
)
def test_an_unlisted_origin_gets_nothing_but_a_word_to_caches(origin: bytes | None) -> None:
    cors = Cors((APP,))

    assert fields_of([cors.fields(origin)]) == {"vary": "Origin"}
    assert cors.preflight(PREFLIGHT, origin) == []


@given(origin=origins)
def test_a_star_permits_every_origin_but_no_credentials(origin: bytes | None) -> None:
    for cors in (Cors(("*",)), Cors((APP, "*"))):
        fields = fields_of([cors.fields(origin)])
        asked = fields_of(cors.preflight(PREFLIGHT, origin))

        assert fields["access-control-allow-origin"] == "*"
        assert "access-control-allow-methods" in asked
        assert not any("credentials" in name for name in (*fields, *asked))


def test_a_preflight_is_granted_what_it_requests() -> None:
    fields = fields_of(Cors((APP,)).preflight(PREFLIGHT, ORIGIN))

    assert fields["access-control-allow-headers"] == PREFLIGHT[2][1].decode()
    assert "POST" in fields["access-control-allow-methods"].split(", ")
    assert int(fields["access-control-max-age"]) > 0


def test_an_options_request_that_is_no_preflight_gets_the_methods() -> None:
    fields = fields_of(Cors((APP,)).preflight([(b"Origin", ORIGIN)], ORIGIN))

    assert list(fields) == ["allow"]
    assert "OPTIONS" in fields["allow"].split(", ")


@given(names=st.binary(max_size=60) | st.text("aZ9-_., \t\r\n\x00:*", max_size=60).map(str.encode))
def test_headers_that_a_preflight_requests_cannot_inject_lines(names: bytes) -> None:
    asked = [
        (b"Access-Control-Request-Method", b"POST"),
        (b"access-control-request-headers", names),
    ]

    lines = Cors(("*",)).preflight(asked, b"null")

    assert all(line.count(b"\r") == line.count(b"\n") == 1 for line in lines)
    granted = [line for line in lines if line.startswith(b"Access-Control-Allow-Headers")]
    assert granted in ([], [b"Access-Control-Allow-Headers: %b\r\n" % names])
    assert not granted or b"*" not in names


def test_an_endless_list_of_headers_is_not_echoed() -> None:
    asked = [PREFLIGHT[1], (b"Access-Control-Request-Headers", b"a" * 2049)]

    assert "access-control-allow-headers" not in fields_of(Cors(("*",)).preflight(asked, None))
