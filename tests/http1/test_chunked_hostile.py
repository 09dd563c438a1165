"""What the decoder must reject, and that llhttp never reads a body differently."""

from __future__ import annotations

import itertools

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_gguf.http1.chunked import ChunkedError
from tests.http1.test_chunked import bodies, cuts, follow, split

LAST = b"0\r\n\r\n"

BAD_SIZES = {
    "empty": b"\r\nx\r\n",
    "plus": b"+1\r\nx\r\n",
    "minus": b"-1\r\nx\r\n",
    "minus zero": b"-0\r\n\r\n",
    "0x": b"0x1\r\nx\r\n",
    "0X": b"0X1\r\nx\r\n",
    "underscore": b"1_0\r\n0123456789abcdef\r\n",
    "space before": b" 1\r\nx\r\n",
    "tab before": b"\t1\r\nx\r\n",
    "space behind": b"1 \r\nx\r\n",
    "space within": b"1 0\r\n0123456789abcdef\r\n",
    "vertical tab": b"1\x0b\r\nx\r\n",
    "no hex digit": b"g\r\n",
    "arabic digit": "\u0661\r\nx\r\n".encode(),
    "fullwidth digit": "\uff11\r\nx\r\n".encode(),
    "nul": b"1\x00\r\nx\r\n",
    "comma": b"1,1\r\nx\r\n",
    "fraction": b"1.0\r\nx\r\n",
    "16 digits": b"0000000000000001\r\nx\r\n",
    "overflow of 64 bits": b"10000000000000001\r\nx\r\n",
    "minus one in 64 bits": b"ffffffffffffffff\r\nx\r\n",
    "bare LF": b"1\nx\r\n",
    "bare CR": b"1\rx\r\n",
    "CR CR LF": b"1\r\r\nx\r\n",
    "LF CR": b"1\n\rx\r\n",
    "empty line before": b"\r\n1\r\nx\r\n",
}
BAD_EXTENSIONS = {
    "bare LF": b"1;a\nx\r\n",
    "bare CR": b"1;a\rb\r\nx\r\n",
    "CR before LF of its own": b"1;a\r\r\nx\r\n",
    "NUL": b"1;a\x00\r\nx\r\n",
    "DEL": b"1;a\x7f\r\nx\r\n",
    "ESC": b"1;a=\x1b\r\nx\r\n",
    "without a semicolon": b"1 a\r\nx\r\n",
    "LF in quotes": b'1;a="\n"\r\nx\r\n',
    "no name": b"1;\r\nx\r\n",
    "no name twice": b"1;;\r\nx\r\n",
    "no second name": b"1;a;\r\nx\r\n",
    "only a value": b"1;=b\r\nx\r\n",
    "no value": b"1;a=\r\nx\r\n",
    "two words": b"1;a b\r\nx\r\n",
    "a name that is no token": b"1;(\r\nx\r\n",
    "obs-text": b"1;\xff\r\nx\r\n",
    "obs-text in a value": b"1;a=\xff\r\nx\r\n",
    "an open quote": b'1;a="\r\nx\r\n',
    "more behind a quote": b'1;a="b"c\r\nx\r\n',
}
BAD_DATA_ENDS = {
    "longer than it says": b"1\r\nxy\r\n",
    "no CRLF": b"1\r\nx1\r\ny\r\n",
    "bare LF": b"1\r\nx\n",
    "bare LF and more": b"1\r\nx\n1\r\ny\r\n",
    "bare CR": b"1\r\nx\r1\r\n",
    "CR CR LF": b"1\r\nx\r\r\n",
    "space": b"1\r\nx \r\n",
    "shorter than it says": b"3\r\nx\r\n0\r\n\r\nGET",
}
BAD_TRAILERS = {
    "no colon": b"0\r\nabc\r\n\r\n",
    "no name": b"0\r\n: a\r\n\r\n",
    "space before the colon": b"0\r\na : b\r\n\r\n",
    "space before the name": b"0\r\n a: b\r\n\r\n",
    "a fold": b"0\r\na: b\r\n c\r\n\r\n",
    "bare LF": b"0\r\na: b\n\r\n",
    "bare CR": b"0\r\na: b\rc\r\n\r\n",
    "NUL": b"0\r\na: \x00\r\n\r\n",
    "ends with bare LF": b"0\r\n\n",
    "ends with LF LF": b"0\n\n",
    "CR CR LF": b"0\r\n\r\r\n",
    "a name that is no token": b"0\r\na b: c\r\n\r\n",
    "a name in obs-text": b"0\r\n\xe4: c\r\n\r\n",
    "a line of another chunk": b"0\r\n1\r\nx\r\n",
    "a request line": b"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
}
HOSTILE = [
    pytest.param(wire, id=f"{place}: {name}")
    for place, wires in {
        "size": BAD_SIZES,
        "extension": BAD_EXTENSIONS,
        "data end": BAD_DATA_ENDS,
        "trailer": BAD_TRAILERS,
    }.items()
    for name, wire in wires.items()
]


@pytest.mark.parametrize("wire", HOSTILE)
def test_a_hostile_body_is_rejected(wire: bytes) -> None:
    with pytest.raises(ChunkedError):
        follow([wire])


@pytest.mark.parametrize("wire", HOSTILE)
def test_a_hostile_body_is_rejected_after_a_good_chunk_and_byte_by_byte(wire: bytes) -> None:
    behind = b"5\r\nhello\r\n" + wire

    with pytest.raises(ChunkedError):
        follow([bytes([byte]) for byte in behind])


# RFC 9110 section 6.5.1: fields for framing or routing must not be sent in a trailer. In a
# response of the engine the client would receive them, and llhttp rejects such a message.
@pytest.mark.parametrize(
    "line", [b"Content-Length: 5", b"transfer-encoding: chunked", b"HOST:a", b"Trailer: x"]
)
def test_a_field_that_has_no_business_among_the_trailers_is_refused(line: bytes) -> None:
    with pytest.raises(ChunkedError):
        follow([b"0\r\n" + line + b"\r\n\r\n"])


def test_a_trailer_that_only_begins_like_one_of_those_is_fine() -> None:
    assert follow([b"0\r\nHost-Load: 1\r\nX-Content-Length: 5\r\n\r\n"])[0].is_done


# Against llhttp -----------------------------------------------------------------------------------


class Payload:
    def __init__(self) -> None:
        self.data = b""
        self.is_complete = False

    def on_body(self, data: bytes) -> None:
        self.data += data

    def on_message_complete(self) -> None:
        self.is_complete = True


def llhttp_reads(wire: bytes) -> bytes | None:
    """The payload that llhttp finds in *wire*; None if it is invalid or incomplete."""
    payload = Payload()
    parser = httptools.HttpRequestParser(payload)
    parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(wire)
    except httptools.HttpParserError:
        return None
    return payload.data if payload.is_complete else None


def we_read(pieces: list[bytes]) -> tuple[int, bytes] | None:
    """The bytes of *pieces* that are the body, and the payload; None if invalid or incomplete."""
    try:
        body, taken, payload = follow(pieces)
    except ChunkedError:
        return None
    return (taken, payload) if body.is_done else None


changes = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.integers(0, 3),
        st.text('0123af;gx+-_ \t\r\n\x00:="', max_size=3).map(str.encode),
    ),
    min_size=1,
    max_size=3,
)


def changed(wire: bytes, by: list[tuple[int, int, bytes]]) -> bytes:
    """*wire* with some bytes at some places replaced, removed or added."""
    for at, length, put in by:
        place = at % len(wire) if wire else 0
        wire = wire[:place] + put + wire[place + length :]
    return wire


@given(wire_and_payload=bodies)
def test_llhttp_reads_every_good_body_as_we_do(wire_and_payload: tuple[bytes, bytes]) -> None:
    wire, payload = wire_and_payload

    assert we_read([wire]) == (len(wire), payload)
    assert llhttp_reads(wire) == payload


@settings(max_examples=400)
@given(wire_and_payload=bodies, by=changes, cuts=cuts)
def test_llhttp_accepts_every_accepted_body_with_the_same_payload(
    wire_and_payload: tuple[bytes, bytes], by: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    wire = changed(wire_and_payload[0], by)

    ours = we_read(split(wire, cuts))

    assert ours == we_read([wire])  # regardless of the split
    if ours is not None:
        taken, payload = ours
        assert llhttp_reads(wire[:taken]) == payload


def test_no_extension_passes_that_llhttp_refuses() -> None:
    alphabet = [b";", b"=", b'"', b"\\", b"a", b"(", b"\xff", b" "]
    disputed = []
    for length in range(1, 5):
        for letters in itertools.product(alphabet, repeat=length):
            wire = b"1" + b"".join(letters) + b"\r\nx\r\n" + LAST
            if we_read([wire]) is not None and llhttp_reads(wire) is None:
                disputed.append(b"".join(letters))

    assert disputed == []
