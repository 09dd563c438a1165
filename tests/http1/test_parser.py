"""Only heads; ``test_client_requests`` and ``test_client_answers`` test their effects."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_gguf.errors import BadRequest, UpstreamError
from llama_gguf.http1.parser import (
    HEAD_END,
    check_request_start,
    check_response_start,
    parse_request,
    parse_response,
)


def test_a_request_is_parsed() -> None:
    head = parse_request(b"POST /a/b?c=d?e HTTP/1.1\r\nHost: h\r\nX-Y: \t z\r\nx-y:\r\n\r\n")

    assert head.method == b"POST"
    assert head.target == b"/a/b?c=d?e"
    assert head.path == b"/a/b"
    assert head.version == "1.1"
    assert head.fields == [(b"Host", b"h"), (b"X-Y", b"z"), (b"x-y", b"")]


def test_white_space_behind_a_value_is_no_part_of_it() -> None:
    # llhttp leaves it to its caller (RFC 9112 section 5.1).
    request = parse_request(b"GET / HTTP/1.1\r\nX: y \t\r\n\r\n")
    response = parse_response(b"HTTP/1.1 200 OK\r\nX: y \t\r\n\r\n")

    assert request.fields == response.fields == [(b"X", b"y")]


@pytest.mark.parametrize("before", [b"", b" ", b"\t", b" \t "])
@pytest.mark.parametrize("behind", [b"", b" ", b"\t", b"  ", b" \t", b"\t \t"])
@pytest.mark.parametrize(
    "field",
    [
        (b"Transfer-Encoding", b"chunked"),
        (b"TRANSFER-encoding", b"Chunked"),
        (b"Content-Length", b"5"),
        (b"Connection", b"close"),
        (b"Expect", b"100-continue"),
        (b"Host", b"a:80"),
    ],
)
def test_white_space_around_a_value_of_ours_is_no_part_of_it(
    field: tuple[bytes, bytes], before: bytes, behind: bytes
) -> None:
    name, value = field
    lines = b"%b:%b%b%b\r\nX: y\r\n\r\n" % (name, before, value, behind)

    assert parse_request(b"POST / HTTP/1.1\r\n" + lines).fields == [field, (b"X", b"y")]
    assert parse_response(b"HTTP/1.1 200 OK\r\n" + lines).fields == [field, (b"X", b"y")]


def test_a_refusal_of_a_whole_head_names_its_cause_too() -> None:
    with pytest.raises(BadRequest, match="TLS_CERT_FILE"):
        parse_request(b"\x16\x03\x01\x02\r\n\r\n")
    with pytest.raises(BadRequest, match="LF alone"):
        parse_request(b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n")


def test_no_beginning_of_a_valid_head_is_rejected() -> None:
    lines = b"Host: a\r\nX: \xe9 \t\r\nY:\r\n\r\n"
    for line in (b"OPTIONS * HTTP/1.1\r\n", b"GET http://a/b?c HTTP/1.0\r\n"):
        head = line + lines
        parse_request(head)
        for seen, end in itertools.combinations(range(len(head)), 2):
            check_request_start(head[:end], seen)
    for line in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 204\r\n", b"HTTP/1.1 200 \xe9 \r\n"):
        response = line + lines
        parse_response(response)
        for end in range(len(response)):
            check_response_start(response[:end])


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_usual_methods_and_both_versions_are_read(method: bytes, version: bytes) -> None:
    head = parse_request(b"%b / HTTP/%b\r\n\r\n" % (method, version))

    assert head.method == method
    assert head.version == version.decode()


@pytest.mark.parametrize(
    ("given_target", "target"),
    [
        (b"http://h/a?b", b"/a?b"),
        (b"https://h:8/a", b"/a"),
        (b"HTTP://h/", b"/"),
        (b"http://h", b"/"),
        (b"http://[::1]:80/x", b"/x"),
        (b"http://h//a", b"//a"),
    ],
)
def test_an_absolute_target_is_cut_down_to_its_path(given_target: bytes, target: bytes) -> None:
    assert parse_request(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % given_target).target == target


@pytest.mark.parametrize(
    "target",
    [b"*", b"http://", b"http:///x", b"http://u@h/", b"ftp://h/", b"a", b"http://h?x", b"http:/x"],
)
def test_a_target_that_is_neither_path_nor_url_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)


def test_options_may_have_an_asterisk_as_its_target() -> None:
    assert parse_request(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").target == b"*"


def test_an_offer_to_upgrade_is_a_request_like_any_other() -> None:
    head = parse_request(
        b"POST /x HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n"
    )

    assert head.method == b"POST"
    assert (b"Content-Length", b"5") in head.fields


def test_one_head_leaves_nothing_behind_for_the_next() -> None:
    with pytest.raises(BadRequest):
        parse_request(b"GET /one HTTP/1.1\r\nA: b\r\nbad\r\n\r\n")
    head = parse_request(b"GET /two HTTP/1.1\r\nC: d\r\n\r\n")

    assert head.target == b"/two"
    assert head.fields == [(b"C", b"d")]


def test_a_response_is_parsed() -> None:
    head = parse_response(b"HTTP/1.1 404 Not Here \r\nX: y\r\nx: \xe9\r\n\r\n")

    assert (head.status, head.version) == (404, "1.1")
    assert head.reason.strip() == b"Not Here"
    assert head.fields == [(b"X", b"y"), (b"x", b"\xe9")]


def test_a_response_s_framing_is_not_checked_by_the_parser() -> None:
    head = parse_response(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n")

    assert head.version == "1.0"
    assert head.fields == [(b"Content-Length", b"7")]


def test_a_response_leaves_no_state_for_the_next_one() -> None:
    with pytest.raises(UpstreamError):
        parse_response(b"HTTP/1.1 200 OK\r\nA: b\r\nbad\r\n\r\n")

    assert parse_response(b"HTTP/1.1 204\r\n\r\n").fields == []
    assert parse_response(b"HTTP/1.1 204\r\n\r\n").reason == b""


PIECES = st.sampled_from(
    [
        *(b"GET", b"POST", b" ", b"/", b"/v1", b"*", b"http://h", b"HTTP/1.1", b"HTTP/1.0", b":"),
        *(b"\r\n", b"\r", b"\n", b"\0", b"\t", b"Host: h\r\n", b"Content-Length: 5\r\n", b"\xff"),
        *(b"Transfer-Encoding: chunked\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n", b"200 OK"),
    ]
)


@given(st.lists(PIECES | st.binary(max_size=4), max_size=20))
def test_no_bytes_make_the_parsers_fail_in_any_other_way(pieces: list[bytes]) -> None:
    text = b"".join(pieces).partition(HEAD_END)[0] + HEAD_END
    try:
        request = parse_request(text)
    except BadRequest:
        pass
    else:
        assert request.target.startswith(b"/") or request.target == b"*"
        assert not any(c in v for _, v in request.fields for c in b"\r\n\0")
    try:
        response = parse_response(text)
    except UpstreamError:
        pass
    else:
        assert 100 <= response.status <= 599


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.from_regex(rb"\A[A-Za-z!#$%&'*+.^_`|~0-9-]{1,20}\Z"),
            st.from_regex(rb"\A(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]{0,20}[!-~\x80-\xff])?)?\Z"),
        ).filter(
            lambda f: (
                f[0].lower()
                not in (b"content-length", b"transfer-encoding", b"connection", b"upgrade")
            )
        ),
        max_size=10,
    )
)
def test_fields_are_returned_unchanged(fields: list[tuple[bytes, bytes]]) -> None:
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)

    assert parse_request(b"GET / HTTP/1.1\r\n" + lines + b"\r\n").fields == fields
    assert parse_response(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n").fields == fields
