"""Responses of the engine: which of their fields are forwarded, and how their body ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import UpstreamError
from llama_gguf.http1 import fields as module
from llama_gguf.http1.fields import Fields, Framing, ResponseFields, read_response

CHUNKED = (b"Transfer-Encoding", b"chunked")
LENGTH = (b"Content-Length", b"5")


def read(
    *fields: tuple[bytes, bytes], status: int = 200, is_head_request: bool = False
) -> ResponseFields:
    return read_response(list(fields), status=status, is_head_request=is_head_request)


def lines_of(read: ResponseFields) -> Fields:
    """The forwarded fields, parsed as a peer would."""
    *lines, last = b"".join(read.forwarded).split(b"\r\n")
    assert last == b""
    pairs = [line.split(b": ", 1) for line in lines]
    return [(name, value) for name, value in pairs]


# Forwarded ----------------------------------------------------------------------------------------

DROPPED = (
    *(b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authenticate", b"TE", b"Trailer"),
    *(b"Upgrade", b"Transfer-Encoding", b"Content-Length", b"Server", b"X-Request-Id"),
    *(b"Access-Control-Allow-Origin", b"Access-Control-Allow-Credentials"),
    *(b"Access-Control-Expose-Headers", b"Access-Control-Something-New"),
)
VALUES = {b"Transfer-Encoding": b"chunked", b"Content-Length": b"5"}


@pytest.mark.parametrize("name", DROPPED, ids=bytes.decode)
@pytest.mark.parametrize("spelt", [bytes.lower, bytes.upper, bytes.swapcase])
def test_fields_that_the_gateway_sets_are_dropped_in_every_spelling(
    name: bytes, spelt: Callable[[bytes], bytes]
) -> None:
    assert lines_of(read((spelt(name), VALUES.get(name, b"x")))) == []


@given(
    fields=st.lists(
        st.sampled_from(
            [
                (b"Set-Cookie", b"a=1"),
                (b"set-cookie", b"b=2"),
                (b"Content-Type", b"application/json"),
                (b"DATE", b"Thu, 01 Jan 1970 00:00:00 GMT"),
                (b"X-Accel-Buffering", b"no"),
                (b"Via", b"1.1 x"),
                (b"Access-Controlled", b"\xe4"),
                (b"server", b"llama.cpp"),
                (b"ACCESS-CONTROL-ALLOW-ORIGIN", b"http://evil.example"),
            ]
        ),
        max_size=12,
    )
)
def test_all_other_fields_are_forwarded_unchanged_and_in_order(fields: Fields) -> None:
    ours = (b"server", b"access-control-allow-origin")

    assert lines_of(read(*fields)) == [f for f in fields if f[0].lower() not in ours]


@pytest.mark.parametrize(
    "connection", [[b"X-Secret"], [b"close", b" x-SECRET,"], [b"x-secret, keep-alive"]], ids=repr
)
def test_fields_that_connection_nominates_are_dropped(connection: list[bytes]) -> None:
    naming = [(b"connection", value) for value in connection]

    assert lines_of(read((b"x-Secret", b"1"), *naming, (b"X-Kept", b"2"))) == [(b"X-Kept", b"2")]


def test_type_and_date_are_forwarded_if_connection_nominates_another_field() -> None:
    fields = [(b"Content-Type", b"text/plain"), (b"Date", b"today"), (b"X-A", b"1")]

    found = read(*fields, (b"Connection", b"x-a"))

    assert lines_of(found) == fields[:2]


def test_connection_cannot_remove_the_framing() -> None:
    assert read((b"Connection", b"content-length"), LENGTH).length == 5


# What is learnt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "is_stream"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"application/json", False),
        (b"text/plain; x=text/event-stream", False),
    ],
)
def test_an_event_stream_is_known_by_its_type(value: bytes, is_stream: bool) -> None:
    assert read((b"content-type", value)).is_event_stream == is_stream


def test_a_response_without_a_type_is_not_an_event_stream() -> None:
    assert not read().is_event_stream


def test_whether_there_is_a_date_and_whether_the_connection_is_kept_is_known() -> None:
    found = read((b"dAte", b"x"), (b"Connection", b"Close"))

    assert found.has_date
    assert found.connection == {b"close"}
    assert not read().has_date


# Framing (RFC 9112 section 6.3) -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "is_head_request", "fields", "framing", "length"),
    [
        pytest.param(200, False, [], Framing.CLOSE, None, id="nothing said"),
        pytest.param(200, False, [LENGTH], Framing.LENGTH, 5, id="a length"),
        pytest.param(200, False, [(b"content-length", b"0")], Framing.LENGTH, 0, id="length 0"),
        pytest.param(200, False, [CHUNKED], Framing.CHUNKED, None, id="chunked"),
        pytest.param(
            200, False, [(b"transfer-encoding", b"Chunked")], Framing.CHUNKED, None, id="Chunked"
        ),
        pytest.param(200, True, [LENGTH], Framing.NONE, 5, id="HEAD with a length"),
        pytest.param(200, True, [CHUNKED], Framing.NONE, None, id="HEAD, chunked"),
        pytest.param(200, True, [], Framing.NONE, None, id="HEAD"),
        pytest.param(204, False, [], Framing.NONE, None, id="204"),
        pytest.param(204, False, [LENGTH], Framing.NONE, 5, id="204 with a length"),
        pytest.param(204, False, [CHUNKED], Framing.NONE, None, id="204, chunked"),
        pytest.param(304, False, [LENGTH], Framing.NONE, 5, id="304 with a length"),
        pytest.param(304, False, [CHUNKED], Framing.NONE, None, id="304, chunked"),
        pytest.param(500, False, [LENGTH], Framing.LENGTH, 5, id="500"),
        pytest.param(205, False, [], Framing.CLOSE, None, id="205 is not among them"),
    ],
)
def test_how_the_body_ends(
    status: int, is_head_request: bool, fields: Fields, framing: Framing, length: int | None
) -> None:
    found = read(*fields, status=status, is_head_request=is_head_request)

    assert (found.framing, found.length) == (framing, length)


BAD_FRAMING: dict[str, Fields] = {
    "equal lengths": [LENGTH, (b"content-length", b"5")],
    "two lengths": [LENGTH, (b"Content-Length", b"6")],
    "a list of lengths": [(b"Content-Length", b"5, 5")],
    "plus": [(b"Content-Length", b"+5")],
    "minus": [(b"Content-Length", b"-5")],
    "underscore": [(b"Content-Length", b"1_0")],
    "hexadecimal": [(b"Content-Length", b"0x5")],
    "empty": [(b"Content-Length", b"")],
    "space": [(b"Content-Length", b"5 5")],
    "arabic digit": [(b"Content-Length", "\u0665".encode())],
    "19 digits": [(b"Content-Length", b"1" * 19)],
    "length and coding": [LENGTH, CHUNKED],
    "coding and length": [CHUNKED, LENGTH],
    "gzip": [(b"Transfer-Encoding", b"gzip")],
    "identity": [(b"Transfer-Encoding", b"identity")],
    "gzip, chunked": [(b"Transfer-Encoding", b"gzip, chunked")],
    "chunked twice": [CHUNKED, CHUNKED],
    "chunked, chunked": [(b"Transfer-Encoding", b"chunked, chunked")],
    "an empty coding": [(b"Transfer-Encoding", b"")],
}


@pytest.mark.parametrize("fields", BAD_FRAMING.values(), ids=BAD_FRAMING.keys())
@pytest.mark.parametrize("is_head_request", [False, True], ids=["GET", "HEAD"])
def test_framing_that_is_double_or_malformed_is_a_bad_gateway(
    fields: Fields, is_head_request: bool
) -> None:
    with pytest.raises(UpstreamError) as caught:
        read(*fields, is_head_request=is_head_request)

    assert caught.value.status == 502


# Memory -------------------------------------------------------------------------------------------


def test_many_names_do_not_grow_the_memo_and_do_not_loosen_the_rules() -> None:
    for n in range(module._RESPONSE_RULES.max_entries + 500):
        assert lines_of(read((b"X-%d" % n, b"1"))) == [(b"X-%d" % n, b"1")]

    assert len(module._RESPONSE_RULES) <= module._RESPONSE_RULES.max_entries
    assert lines_of(read((b"aCCess-Control-Allow-Origin", b"*"), (b"sERVEr", b"x"))) == []
