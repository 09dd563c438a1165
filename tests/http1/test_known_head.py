from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_gguf.http1.fields import read_request, read_response
from llama_gguf.http1.known_head import NO_HEAD, NO_MATCH, KnownHead
from llama_gguf.http1.parser import HEAD_END, parse_request, parse_response
from llama_gguf.http1.request import Request, RequestHead
from llama_gguf.http1.response import ResponseHead
from llama_gguf.http1.routes import Kind, Route

POST = b"POST /v1/completions?x=y HTTP/1.1\r\n"
HOST = b"Host: gateway.example\r\n"


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


Meaning = tuple[object, ...]
"""The properties of a head, without its length."""


def meaning_of_request(raw: bytes) -> tuple[Meaning, int | None]:
    """The properties of *raw*, and its length.

    Raises:
        GatewayError: it is refused.
    """
    head = parse_request(raw)
    read = read_request(head.fields, version=head.version)
    found = {name: getattr(read, name) for name in read.__slots__ if name != "content_length"}
    return (*without_length(head), read.content_length is None, found), read.content_length


def meaning_of_response(raw: bytes) -> tuple[Meaning, int | None]:
    head = parse_response(raw)
    read = read_response(head.fields, status=head.status, is_head_request=False)
    found = {name: getattr(read, name) for name in read.__slots__ if name != "length"}
    return (*without_length(head), read.length is None, found), read.length


def without_length(head: RequestHead | ResponseHead) -> Meaning:
    fields = [(n, b"" if n.lower() == b"content-length" else v) for n, v in head.fields]
    return (*(getattr(head, name) for name in head.__slots__ if name != "fields"), fields)


Understand = Callable[[bytes], tuple[Meaning, int | None]]


def check(understand: Understand, head: bytes, data: bytes) -> bool:
    """Whether *data* matches *head*; fails if it must not match."""
    meaning, length = understand(head)
    known = KnownHead(head, length)
    assert known.length == (length or 0)
    end, found = known.match(data)
    whole = data[: data.find(HEAD_END) + len(HEAD_END)]
    assert known.match_secret(whole) == (end, found)
    if end < 0:
        assert (end, found) == NO_MATCH
        return False
    assert end == data.find(HEAD_END) + len(HEAD_END), "its end is the first blank line"
    again, its_length = understand(data[:end])  # raises if it is rejected
    assert again == meaning
    assert found == (its_length or 0)
    return True


USUAL_LINES = [
    b"Content-Length: %b\r\n",
    b"content-length: %b\r\n",
    b"CONTENT-LENGTH: %b\r\n",
    b"Content-length: %b\r\n",
]
LENGTH_LINES = [
    *USUAL_LINES,
    b"Content-Length:%b\r\n",
    b"Content-Length:  %b\r\n",
    b"Content-Length: %b \r\n",
    b"Content-Length:\t%b\r\n",
]
OTHER_LINES = [b"X-A: 1\r\n", b"x-content-length: 7\r\n", b"Connection: close\r\n", b"A: %5\r\n"]
CHUNKED = b"Transfer-Encoding: chunked\r\n"
STARTS: dict[Understand, list[bytes]] = {
    meaning_of_request: [
        POST + HOST,
        b"GET / HTTP/1.1\r\n" + HOST,
        b"POST /content-length:%205 HTTP/1.0\r\n",
    ],
    meaning_of_response: [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 204 No\r\n",
        b"HTTP/1.0 500 content-length: 5\r\n",
    ],
}


class Head(NamedTuple):
    """A head around its Content-Length line."""

    understand: Understand
    start: bytes
    end: bytes

    def having(self, *lines: bytes) -> bytes:
        return b"".join((self.start, *lines, self.end))


@st.composite
def heads(draw: st.DrawFn) -> Head:
    understand = draw(st.sampled_from(list(STARTS)))
    start = draw(st.sampled_from(STARTS[understand]))
    before, behind = (draw(st.lists(st.sampled_from(OTHER_LINES), max_size=2)) for _ in "ab")
    return Head(understand, start + b"".join(before), b"".join(behind) + b"\r\n")


length_lines = st.sampled_from(LENGTH_LINES)
digits = st.integers(0, 10**18 - 1).map(lambda n: b"%d" % n)
zeros = st.sampled_from([b"", b"0", b"000"])
whatever = st.binary(max_size=9)


@given(
    head=heads(), line=length_lines, first=digits, second=st.tuples(zeros, digits), behind=whatever
)
def test_a_head_is_known_by_all_but_its_digits_where_they_are_in_their_usual_place(
    head: Head, line: bytes, first: bytes, second: tuple[bytes, bytes], behind: bytes
) -> None:
    has_zeros, number = bool(second[0]), b"".join(second)
    assume(len(number) <= 18)
    known, again = head.having(line % first), head.having(line % number)

    is_known = check(head.understand, known, again + behind)

    is_usual = line in USUAL_LINES
    assert is_known or not is_usual or has_zeros  # whether zeros make it another head is undefined
    assert not is_known or is_usual or again == known


NO_DIGITS = [
    *(b"", b" ", b"+5", b"-5", b" 5", b"5 ", b"5\t", b"\x0b5", b"5 5", b"5,5", b"5, 5", b"5_0"),
    *(b"0x5", b"5a", b"a5", b"5.0", b"1e1", b"\xb2", b"5\r", b"5\n", b"5\0", b"5\r\n ", b"5;a"),
    *(b"9" * 19, b"0" * 18 + b"5", b"5\r\n5", b"\r\n", b"\r\n\r\n", b"5\r\nA: b"),
]  # fmt: skip


@settings(max_examples=20 * len(NO_DIGITS))
@given(
    nonsense=st.sampled_from(NO_DIGITS), head=heads(), line=length_lines, n=digits, behind=whatever
)
def test_a_head_with_something_else_for_the_digits_is_not_known(
    nonsense: bytes, head: Head, line: bytes, n: bytes, behind: bytes
) -> None:
    known = head.having(line % n)

    assert not check(head.understand, known, head.having(line % nonsense) + behind)


@pytest.mark.parametrize("understand", STARTS, ids=["request", "response"])
def test_only_digits_may_differ_in_a_known_head(understand: Understand) -> None:
    start, end = STARTS[understand][0] + b"Content-Length: ", b"\r\nA: b\r\n\r\n"
    known = start + b"15" + end
    known_head = KnownHead(known, 15)
    for place in range(len(known)):
        for byte in range(256):
            data = known[:place] + bytes((byte,)) + known[place + 1 :] + b"behind"
            found = known_head.match(data)
            is_known = found[0] == len(known)

            assert is_known or found == NO_MATCH
            assert known_head.match_secret(data[: len(known)]) == found
            is_digit = 0 <= place - len(start) < 2 and byte in b"0123456789"
            # Whether a leading zero makes it another head is undefined.
            is_open = place == len(start) and byte in b"0"
            assert is_open or is_known == (byte == known[place] or is_digit)
            assert not is_known or found[1] == understand(data[: len(known)])[1]


@given(head=heads(), line=length_lines | st.just(b""), second=digits, data=st.data())
def test_an_incomplete_head_is_never_known(
    head: Head, line: bytes, second: bytes, data: st.DataObject
) -> None:
    whole = head.having(line % second if line else b"")
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    assert not check(head.understand, whole, cut)


@pytest.mark.parametrize("cut", [b"", b"1", b"12", b"123", b"123\r", b"123\r\n", b"123\r\n\r"])
def test_digits_may_be_split_anywhere_and_are_never_read_as_fewer(cut: bytes) -> None:
    known = KnownHead(POST + b"Content-Length: 5\r\n\r\n", 5)

    assert known.match(POST + b"Content-Length: " + cut) == NO_MATCH


MANY_BYTES = st.integers(0, 255) | st.sampled_from(b"0123456789 \t\r\n\0:+-")


@given(head=heads(), line=length_lines | st.just(b""), number=digits, change=st.data())
def test_a_head_with_bytes_changed_is_known_only_if_it_means_the_same(
    head: Head, line: bytes, number: bytes, change: st.DataObject
) -> None:
    known = head.having(line % number if line else b"")
    place = change.draw(st.integers(0, len(known)))
    behind = place + change.draw(st.integers(0, 2))
    put = change.draw(st.lists(MANY_BYTES, max_size=2).map(bytes))

    check(head.understand, known, known[:place] + put + known[behind:])


@given(head=heads(), line=length_lines, first=digits, second=digits, put=st.data())
def test_bytes_changed_around_the_digits_are_noticed(
    head: Head, line: bytes, first: bytes, second: bytes, put: st.DataObject
) -> None:
    known = head.having(line % first)
    again = head.having(line % second)
    place = len(head.start) + put.draw(st.integers(0, len(line % second) + 2))
    piece = put.draw(st.lists(MANY_BYTES, max_size=2).map(bytes))

    check(head.understand, known, again[:place] + piece + again[place + len(piece) :])


@given(
    head=heads(),
    lines=st.lists(length_lines | st.just(CHUNKED) | st.sampled_from(OTHER_LINES), max_size=3),
    line=length_lines,
    number=digits,
)
def test_a_head_with_a_line_more_or_less_is_another(
    head: Head, lines: list[bytes], line: bytes, number: bytes
) -> None:
    others = [other % number if other in LENGTH_LINES else other for other in lines]
    assume(others != [line % number])

    assert not check(head.understand, head.having(line % number), head.having(*others))


@given(head=heads(), first=length_lines, second=length_lines, one=digits, two=digits)
def test_a_length_in_another_spelling_makes_another_head(
    head: Head, first: bytes, second: bytes, one: bytes, two: bytes
) -> None:
    assume(first != second)

    assert not check(head.understand, head.having(first % one), head.having(second % two))


@pytest.mark.parametrize("line", [b"", CHUNKED], ids=["no length", "chunked"])
@given(head=heads(), number=digits, behind=whatever)
def test_a_head_without_a_length_is_known_by_every_byte(
    line: bytes, head: Head, number: bytes, behind: bytes
) -> None:
    assume(b"HTTP/1.0" not in head.start or line != CHUNKED)  # which has no chunks
    known = head.having(line)

    assert check(head.understand, known, known + behind)
    for length_line in LENGTH_LINES:
        assert not check(head.understand, known, head.having(length_line % number))
        assert not check(head.understand, known, head.having(line, length_line % number))
        assert not check(head.understand, known, head.having(length_line % number, line))


@given(first=heads(), second=heads(), one=length_lines, two=length_lines, number=digits)
def test_no_head_is_mistaken_for_another(
    first: Head, second: Head, one: bytes, two: bytes, number: bytes
) -> None:
    known, data = first.having(one % number), second.having(two % number)

    assert check(first.understand, known, data) == (known == data)


def test_the_length_is_that_of_the_head_that_is_there() -> None:
    known = KnownHead(POST + b"Content-Length: 5\r\n\r\n", 5)
    lengths = [
        known.match(POST + b"Content-Length: " + number + b"\r\n\r\nbody")[1]
        for number in (b"5", b"123456", b"0", b"9" * 18)
    ]

    assert lengths == [5, 123456, 0, 10**18 - 1]
    assert known.length == 5


def test_hostile_digits_use_bounded_memory() -> None:
    known = KnownHead(POST + b"Content-Length: 5\r\n\r\n", 5)
    start = POST + b"Content-Length: "
    known.match(start + b"6\r\n\r\n")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for n in range(5000):
        known.match(start + b"%d" % n + b"x" * 10_000)
        known.match(start + b"%d\r\n\r\n" % n)
    behind, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert behind - before < 1 << 20


@given(data=st.binary(max_size=30))
def test_the_absent_head_matches_nothing(data: bytes) -> None:
    assert NO_HEAD.match(data) == NO_MATCH
