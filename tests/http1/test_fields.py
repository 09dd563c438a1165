"""Requests: which of their fields are forwarded, and what is rejected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import BadRequest
from llama_gguf.http1 import fields as module
from llama_gguf.http1.fields import Fields, RequestFields, find, read_request, request_rules

HOST = (b"Host", b"a.example")

# RFC 9110 section 7.6.1, and what curl --http2 offers.
HOP_BY_HOP = (
    *(b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authenticate"),
    *(b"Proxy-Authorization", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade"),
    b"HTTP2-Settings",
)
REPLACED = (b"Host", b"Authorization", b"X-Api-Key", b"Content-Length", b"Expect", b"X-Request-Id")


def read(*fields: tuple[bytes, bytes]) -> RequestFields:
    return read_request([HOST, *fields], version="1.1")


def lines_of(read: RequestFields) -> Fields:
    """The forwarded fields, parsed as a peer would."""
    *lines, last = b"".join(read.forwarded).split(b"\r\n")
    assert last == b""
    pairs = [line.split(b": ", 1) for line in lines]
    return [(name, value) for name, value in pairs]


# Forwarded ----------------------------------------------------------------------------------------

token = st.text("abcXYZ-_.!#09", min_size=1, max_size=12).map(str.encode)
visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
plain_fields = st.tuples(token, visible.map(str.encode))
dropped_fields = st.sampled_from(
    [
        (b"TE", b"trailers"),
        (b"tRaIlEr", b"x-sum"),
        (b"KEEP-ALIVE", b"timeout=5"),
        (b"Upgrade", b"h2c"),
        (b"authorization", b"Bearer x"),
        (b"X-API-KEY", b"x"),
        (b"Connection", b"keep-alive"),
    ]
)


@given(fields=st.lists(plain_fields | dropped_fields, max_size=20))
def test_other_fields_are_forwarded_unchanged_and_in_order(fields: Fields) -> None:
    dropped = {name.lower() for name in (*HOP_BY_HOP, *REPLACED)}

    assert lines_of(read(*fields)) == [f for f in fields if f[0].lower() not in dropped]


def test_a_repeated_field_stays_repeated_with_its_case_and_order() -> None:
    fields = [(b"X-A", b"1"), (b"x-a", b"2"), (b"X-a", b""), (b"X-A", b"1"), (b"Cookie", b"a=1;b")]

    assert lines_of(read(*fields)) == fields


def test_bytes_that_are_not_ascii_are_forwarded_unchanged() -> None:
    assert lines_of(read((b"X-Name", b"\xe4\t\xff"))) == [(b"X-Name", b"\xe4\t\xff")]


@pytest.mark.parametrize("name", HOP_BY_HOP + REPLACED, ids=bytes.decode)
@pytest.mark.parametrize("spelt", [bytes.lower, bytes.upper, bytes.swapcase])
def test_hop_by_hop_fields_are_dropped_in_every_spelling(
    name: bytes, spelt: Callable[[bytes], bytes]
) -> None:
    value = {b"Transfer-Encoding": b"chunked", b"Content-Length": b"0", b"Expect": b"100-continue"}
    without_host = [] if name == b"Host" else [HOST]
    fields = [*without_host, (spelt(name), value.get(name, b"x"))]

    assert lines_of(read_request(fields, version="1.1")) == []


def test_the_origin_is_known_and_forwarded() -> None:
    found = read((b"origin", b"https://a.example"))

    assert found.origin == b"https://a.example"
    assert lines_of(found) == [(b"origin", b"https://a.example")]


# Named by Connection (RFC 9110 section 7.6.1) -----------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-secret"],
        [b"X-SECRET"],
        [b"close, X-Secret"],
        [b" , x-secret\t,, keep-alive"],
        [b"close", b"x-other, x-secret"],
        [b"x-secret", b"close"],
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "behind"])
def test_fields_that_connection_nominates_are_dropped(
    connection: list[bytes], is_before: bool
) -> None:
    nominated = [(b"X-Secret", b"1"), (b"x-sEcReT", b"2")]
    naming = [(b"cOnNeCtIoN", value) for value in connection]
    fields = [*naming, *nominated] if is_before else [*nominated, *naming]

    assert lines_of(read(*fields, (b"X-Kept", b"3"))) == [(b"X-Kept", b"3")]


def test_connection_cannot_remove_the_framing_or_the_host() -> None:
    found = read((b"Connection", b"content-length, host"), (b"Content-Length", b"5"))

    assert found.content_length == 5
    assert lines_of(found) == []


def test_connection_cannot_remove_the_key_or_forward_a_dropped_field() -> None:
    found = read((b"Connection", b"authorization"), (b"Authorization", b"Bearer k"), (b"TE", b"x"))

    assert found.authorizations == [b"Bearer k"]
    assert lines_of(found) == []


def test_connection_options_are_in_lower_case() -> None:
    assert read((b"Connection", b"Close , Foo"), (b"connection", b"bar")).connection == {
        *(b"close", b"foo", b"bar")
    }


# The request's id ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"a", b"req-1.2:3_X", b"9" * 128])
def test_a_sane_request_id_of_the_client_is_kept(value: bytes) -> None:
    assert read((b"X-Request-ID", value)).request_id == value


@pytest.mark.parametrize(
    "value",
    [b"", b"9" * 129, b"a b", b"a\r\nb", b"a\n", b'a"b', b"\xe4", b"a\x1b[31m", b"{}", b"a,b"],
    ids=lambda value: repr(value[:20]),
)
def test_a_request_id_that_could_break_a_log_or_a_head_is_not(value: bytes) -> None:
    found = read((b"X-Request-ID", value))

    assert found.request_id is None
    assert lines_of(found) == []


@pytest.mark.parametrize(("keep", "lines"), [(False, 0), (True, 1)])
def test_a_conversation_id_is_forwarded_only_if_its_routes_are_exposed(
    keep: bool, lines: int
) -> None:
    rules = request_rules(keep_credentials=False, keep_conversations=keep)
    fields = [HOST, (b"x-CONVERSATION-id", b"c1")]

    assert len(lines_of(read_request(fields, version="1.1", rules=rules))) == lines


# Memory -------------------------------------------------------------------------------------------


def test_hostile_names_do_not_grow_the_memo_and_do_not_loosen_the_rules() -> None:
    for n in range(module.USUAL_RULES.max_entries + 500):
        assert lines_of(read((b"X-Hostile-%d" % n, b"1"))) == [(b"X-Hostile-%d" % n, b"1")]

    assert len(module.USUAL_RULES) <= module.USUAL_RULES.max_entries
    assert lines_of(read((b"pRoXy-aUtHoRiZaTiOn", b"1"), (b"tRAILEr", b"1"))) == []
    with pytest.raises(BadRequest):
        read((b"cOnTeNt-LeNgTh", b"x"))


# find ---------------------------------------------------------------------------------------------


def test_the_first_field_of_a_name_is_found_in_any_case() -> None:
    fields = [(b"Accept", b"a"), (b"ACCEPT", b"b")]

    assert find(fields, b"accept") == b"a"
    assert find(fields, b"origin") is None
