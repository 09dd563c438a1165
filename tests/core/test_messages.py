"""What heads say, and when that may be said again of another one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_gguf.core.fields import Framing, read_request, read_response
from llama_gguf.core.messages import NO_HEAD, NO_MATCH, Answer, KnownHead, Request, unread
from llama_gguf.core.routes import Kind, Route
from llama_gguf.gateway.heads import HEAD_END, parse_request, parse_response

POST = b"POST /v1/completions?x=y HTTP/1.1\r\n"
HOST = b"Host: gateway.example\r\n"
ADDRESS = b"Host: engine.example\r\n"


def understood(raw: bytes) -> Request:
    head = parse_request(raw)
    return Request(
        head,
        cors=b"Vary: Origin\r\n",
        read=read_request(head.fields, version=head.version),
        route=Route(Kind.PROXIED, "/v1/completions"),
        via=b"us",
    )


def request(*lines: bytes, first: bytes = POST) -> Request:
    return understood(b"".join((first, HOST, *lines, b"\r\n")))


def answered(raw: bytes, *, to_head: bool = False) -> Answer:
    head = parse_response(raw)
    return Answer(head, read_response(head.fields, status=head.status, to_head=to_head))


# Requests -----------------------------------------------------------------------------------------


def test_a_request_is_written_anew_with_what_goes_on_of_it() -> None:
    found = request(b"X-A: 1\r\n", b"Connection: close, X-Hop\r\n", b"X-Hop: 2\r\n", b"x-b:3\r\n")

    assert found.serialised(ADDRESS, b"req-1", b"body") == (
        b"POST /v1/completions?x=y HTTP/1.1\r\nHost: engine.example\r\nX-A: 1\r\nx-b: 3\r\n"
        b"x-request-id: req-1\r\nVia: 1.1 us\r\nContent-Length: 4\r\n\r\nbody"
    )


def test_a_request_serves_again_with_another_id_and_another_body() -> None:
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
def test_the_engine_is_told_a_length_of_0_where_that_means_something(
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
    ("version", "line", "may_persist"),
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
    version: bytes, line: bytes, may_persist: bool
) -> None:
    found = request(line, first=b"GET / HTTP/%b\r\n" % version)

    assert found.may_persist == may_persist
    assert found.reads_chunks == (version == b"1.1")
    assert b"\r\nVia: %b us\r\n" % version in found.serialised(ADDRESS, b"r", b"")


@pytest.mark.parametrize(
    ("method", "is_to_head", "is_idempotent"),
    [
        (b"GET", False, True),
        (b"HEAD", True, True),
        (b"POST", False, False),
        (b"PUT", False, False),
        (b"DELETE", False, False),
    ],
)
def test_only_what_changes_nothing_for_sure_may_be_sent_twice(
    method: bytes, is_to_head: bool, is_idempotent: bool
) -> None:
    found = request(first=method + b" / HTTP/1.1\r\n")

    assert (found.is_to_head, found.is_idempotent) == (is_to_head, is_idempotent)


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


# Answers ------------------------------------------------------------------------------------------


def test_an_answer_begins_with_what_the_engine_said() -> None:
    found = answered(b"HTTP/1.0 404 Not Here\r\nX-A: 1\r\nServer: x\r\nContent-Length: 3\r\n\r\n")

    assert found.opening == b"HTTP/1.1 404 Not Here\r\nX-A: 1\r\n"
    assert (found.status, found.framing) == (404, Framing.LENGTH)


@pytest.mark.parametrize(
    ("head", "framing", "has_length", "may_persist"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", Framing.LENGTH, True, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", Framing.CHUNKED, False, False),
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
def test_an_answer_s_framing_says_whether_its_connection_serves_again(
    head: bytes, framing: Framing, has_length: bool, may_persist: bool
) -> None:
    found = answered(head + b"\r\n")

    assert (found.framing, found.has_length) == (framing, has_length)
    assert found.may_persist == may_persist


def test_an_answer_to_head_has_a_length_and_no_body() -> None:
    found = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", to_head=True)

    assert (found.framing, found.has_length, found.may_persist) == (Framing.NONE, True, True)


@pytest.mark.parametrize(
    ("line", "has_date", "is_event_stream"),
    [
        (b"", False, False),
        (b"date: x\r\n", True, False),
        (b"Content-Type: Text/Event-Stream; charset=utf-8\r\n", False, True),
        (b"Content-Type: text/plain\r\n", False, False),
    ],
)
def test_an_answer_s_fields_tell_what_else_it_is(
    line: bytes, has_date: bool, is_event_stream: bool
) -> None:
    found = answered(b"HTTP/1.1 200 OK\r\n%b\r\n" % line)

    assert (found.has_date, found.is_event_stream) == (has_date, is_event_stream)


# The same head again ------------------------------------------------------------------------------

Meaning = tuple[object, ...]
"""All that is found out about a head, but for its length."""


def meaning_of_request(raw: bytes) -> tuple[Meaning, int | None]:
    """What *raw* says, and its length.

    Raises:
        GatewayError: it is refused.
    """
    head = parse_request(raw)
    read = read_request(head.fields, version=head.version)
    found = {name: getattr(read, name) for name in read.__slots__ if name != "content_length"}
    head = replace(head, fields=without_length(head.fields))
    return (head, read.content_length is None, found), read.content_length


def meaning_of_response(raw: bytes) -> tuple[Meaning, int | None]:
    head = parse_response(raw)
    read = read_response(head.fields, status=head.status, to_head=False)
    found = {name: getattr(read, name) for name in read.__slots__ if name != "length"}
    head = replace(head, fields=without_length(head.fields))
    return (head, read.length is None, found), read.length


def without_length(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(n, b"" if n.lower() == b"content-length" else v) for n, v in fields]


Understand = Callable[[bytes], tuple[Meaning, int | None]]


def check(understand: Understand, head: bytes, data: bytes) -> bool:
    """Whether *data* is taken for *head* again; fails where it must not be."""
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
    again, its_length = understand(data[:end])  # which raises where it is refused
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
    """A head around the line of its length."""

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
    assert is_known or not is_usual or has_zeros  # whether these make it another head is left open
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
def test_whatever_else_stands_for_the_digits_is_no_known_head(
    nonsense: bytes, head: Head, line: bytes, n: bytes, behind: bytes
) -> None:
    known = head.having(line % n)

    assert not check(head.understand, known, head.having(line % nonsense) + behind)


@pytest.mark.parametrize("understand", STARTS, ids=["request", "response"])
def test_whichever_byte_is_another_only_digits_may_be_it(understand: Understand) -> None:
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
            # Whether a zero in front makes it another head is left open.
            is_open = place == len(start) and byte in b"0"
            assert is_open or is_known == (byte == known[place] or is_digit)
            assert not is_known or found[1] == understand(data[: len(known)])[1]


@given(head=heads(), line=length_lines | st.just(b""), second=digits, data=st.data())
def test_a_head_that_is_not_whole_is_never_known(
    head: Head, line: bytes, second: bytes, data: st.DataObject
) -> None:
    whole = head.having(line % second if line else b"")
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    assert not check(head.understand, whole, cut)


@pytest.mark.parametrize("cut", [b"", b"1", b"12", b"123", b"123\r", b"123\r\n", b"123\r\n\r"])
def test_digits_may_be_cut_anywhere_and_are_never_taken_for_fewer(cut: bytes) -> None:
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
def test_no_head_is_taken_for_another(
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


def test_hostile_digits_take_no_memory() -> None:
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
def test_never_is_never(data: bytes) -> None:
    assert NO_HEAD.match(data) == NO_MATCH
