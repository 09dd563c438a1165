"""The fields that decide where a request goes and where it ends: Host, length, coding, Expect."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from llama_gguf.errors import BadRequest, ExpectationFailed, HeadTooLarge, UriTooLong
from llama_gguf.http1.fields import Fields, RequestFields, check_head_size, read_request

HOST = (b"Host", b"a.example")


def read(*fields: tuple[bytes, bytes], version: str = "1.1") -> RequestFields:
    return read_request([HOST, *fields], version=version)


# Host (RFC 9112 section 3.2) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *(b"a", b"a.example", b"a.example:80", b"a:", b"127.0.0.1:8000", b"", b"A_b~c"),
        *(b"[::1]", b"[::1]:8000", b"[2001:db8::7]:", b"%41.example"),
    ],
    ids=repr,
)
def test_a_valid_host_is_accepted(value: bytes) -> None:
    read_request([(b"host", value)], version="1.1")


@pytest.mark.parametrize(
    "value",
    [
        *(b"a b", b"a/b", b"/", b"user@a", b"a:80:80", b"a:8o", b"a:-1", b"a?b", b"a#b", b"a\\b"),
        *(b"[::1", b"::1", b"[::g]", b"[]", b"[::1]a", b"a\x00", b"a\tb", b"\xc3\xa4.example"),
        *(b'"a"', b"<a>", b"http://a", b"a\r\nb", b"a\n"),
    ],
    ids=repr,
)
def test_a_malformed_host_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest):
        read_request([(b"Host", value)], version="1.1")


@pytest.mark.parametrize(
    ("hosts", "version", "is_fine"),
    [
        (0, "1.1", False),
        (0, "1.0", True),
        (1, "1.0", True),
        (2, "1.1", False),
        (2, "1.0", False),
    ],
)
def test_there_is_exactly_one_host_except_in_http_1_0(
    hosts: int, version: str, is_fine: bool
) -> None:
    fields = [HOST, (b"hOST", HOST[1])][:hosts]
    if is_fine:
        read_request(fields, version=version)
    else:
        with pytest.raises(BadRequest):
            read_request(fields, version=version)


# Framing (RFC 9112 sections 6.1 and 6.3) ----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length"), [(b"0", 0), (b"5", 5), (b"007", 7), (b"9" * 18, 999_999_999_999_999_999)]
)
def test_a_length_is_digits(value: bytes, length: int) -> None:
    found = read((b"Content-Length", value))

    assert found.content_length == length
    assert not found.is_chunked


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"+5", b"-5", b"-0", b"5_0", b"0x5", b"5 ", b" 5", b"5, 5", b"5,5", b"5.0", b"1e3"),
        *(b"five", b"\xd9\xa5", b"\xb2", b"5\x00", b"5\n", b"9" * 19, b"9" * 5000),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_length_that_is_anything_else_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest):
        read((b"Content-Length", value))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([(b"Content-Length", b"5"), (b"content-length", b"5")], id="equal lengths"),
        pytest.param([(b"Content-Length", b"5"), (b"Content-Length", b"6")], id="two lengths"),
        pytest.param(
            [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")], id="length and coding"
        ),
        pytest.param(
            [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"0")], id="coding and length"
        ),
        pytest.param(
            [(b"Transfer-Encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
            id="chunked twice",
        ),
    ],
)
def test_double_framing_is_refused_and_ends_the_connection(fields: Fields) -> None:
    with pytest.raises(BadRequest) as caught:
        read(*fields)

    assert caught.value.close


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED"])
def test_chunked_is_the_one_coding(value: bytes) -> None:
    found = read((b"Transfer-Encoding", value))

    assert found.is_chunked
    assert found.content_length is None


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked"),
        *(b"chunked;q=1", b"xchunked", b"chunked ", b"\x0bchunked", b"chunked\x00", b'"chunked"'),
    ],
    ids=repr,
)
def test_any_other_coding_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest):
        read((b"Transfer-Encoding", value))


def test_http_1_0_has_no_coding() -> None:
    with pytest.raises(BadRequest):
        read((b"Transfer-Encoding", b"chunked"), version="1.0")


# Expect (RFC 9110 section 10.1.1) -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "version", "expects"),
    [
        (b"100-continue", "1.1", True),
        (b"100-Continue", "1.1", True),
        (b"100-continue", "1.0", False),
    ],
)
def test_100_continue_is_understood_and_ignored_from_http_1_0(
    value: bytes, version: str, expects: bool
) -> None:
    assert read((b"Expect", value), version=version).expects_continue == expects


@pytest.mark.parametrize("value", [b"200-ok", b"", b"100-continue, x", b"100-continue;a=b"])
def test_an_expectation_that_cannot_be_met_is_refused(value: bytes) -> None:
    with pytest.raises(ExpectationFailed):
        read((b"Expect", value))


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"GET /%b" % (b"x" * 94), None),
        (b"GET /%b" % (b"x" * 96), UriTooLong),
        (b"GET / HTTP/1.1\r\nA: %b" % (b"x" * 47), None),
        (b"GET / HTTP/1.1\r\nA: %b" % (b"x" * 48), HeadTooLarge),
        (b"GET / HTTP/1.1" + b"\r\nA: b" * 14, None),
        (b"GET / HTTP/1.1" + b"\r\nA: b" * 15, HeadTooLarge),
    ],
)
def test_a_head_is_bounded_by_line_by_field_and_in_all(
    head: bytes, error: type[Exception] | None
) -> None:
    with pytest.raises(error) if error else nullcontext():
        check_head_size(head, line=100, field=50, total=100)
