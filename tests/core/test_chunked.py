from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.core import chunked
from llama_gguf.core.chunked import (
    MAX_LINE_BYTES,
    MAX_TRAILER_BYTES,
    ChunkedBody,
    ChunkedError,
    frame,
)

# Bodies as senders may write them -----------------------------------------------------------------

sizes_written = st.sampled_from(["{:x}", "{:X}", "0{:x}", "{:08x}"])
extensions = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="x; y";b'])
chunks = st.tuples(st.binary(min_size=1, max_size=40), sizes_written, extensions)
trailers = st.lists(st.sampled_from([b"X-Sum: 1\r\n", b"x-empty:\r\n", b"E-Tag: \xe4\tb\r\n"]))


def written(parts: list[tuple[bytes, str, bytes]], ends: list[bytes]) -> bytes:
    lines = [
        b"%b%b\r\n%b\r\n" % (size.format(len(data)).encode(), extension, data)
        for data, size, extension in parts
    ]
    return b"".join([*lines, b"0\r\n", *ends, b"\r\n"])


bodies = st.builds(
    lambda parts, ends: (written(parts, ends), b"".join(data for data, _, _ in parts)),
    st.lists(chunks, max_size=5),
    trailers,
)
"""The bytes on the wire, and the payload in them."""
cuts = st.lists(st.integers(0, 400), max_size=8)


def split(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[i:j] for i, j in itertools.pairwise(places)]


def follow(pieces: list[bytes]) -> tuple[ChunkedBody, int, bytes]:
    """The body behind *pieces*, how many bytes of them it took, and the payload."""
    body, sink = ChunkedBody(), bytearray()
    taken = sum([body.feed(piece, sink) for piece in pieces])
    return body, taken, bytes(sink)


# What belongs to a body ---------------------------------------------------------------------------


@given(wire_and_payload=bodies, cuts=cuts)
def test_a_body_is_the_same_however_it_is_split(
    wire_and_payload: tuple[bytes, bytes], cuts: list[int]
) -> None:
    wire, payload = wire_and_payload

    body, taken, decoded = follow(split(wire, cuts))

    assert (body.is_done, taken, decoded) == (True, len(wire), payload)


@given(wire_and_payload=bodies, surplus=st.binary(min_size=1, max_size=20), cuts=cuts)
def test_what_comes_behind_the_end_is_left_alone(
    wire_and_payload: tuple[bytes, bytes], surplus: bytes, cuts: list[int]
) -> None:
    wire, payload = wire_and_payload

    body, taken, decoded = follow(split(wire + surplus, cuts))

    assert (body.is_done, taken, decoded) == (True, len(wire), payload)


@given(wire_and_payload=bodies, data=st.data())
def test_a_body_that_is_cut_off_is_not_taken_for_a_whole_one(
    wire_and_payload: tuple[bytes, bytes], data: st.DataObject
) -> None:
    wire, payload = wire_and_payload
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]

    body, taken, decoded = follow([cut])

    assert not body.is_done
    assert taken == len(cut)
    assert payload.startswith(decoded)


@given(payloads=st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_what_is_framed_here_is_read_back(payloads: list[bytes]) -> None:
    _, taken, decoded = follow([wire := b"".join(map(frame, payloads))])

    assert (taken, decoded) == (len(wire), b"".join(payloads))


def test_the_payload_is_not_collected_where_nobody_wants_it() -> None:
    body = ChunkedBody()

    assert body.feed(b"3\r\nabc\r\n0\r\n\r\n") == 13
    assert body.is_done


def test_a_chunk_larger_than_any_read_is_followed_by_count_and_not_kept() -> None:
    body = ChunkedBody()
    body.feed(b"3b9aca00\r\n")  # a gigabyte
    for _ in range(100):
        assert body.feed(bytes(65536)) == 65536

    assert body._line == b""
    assert not body.is_done


# Between chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("received", "is_between"),
    [
        (b"", True),
        (b"1", False),
        (b"1\r", False),
        (b"1\r\n", False),
        (b"1\r\nx", False),
        (b"1\r\nx\r", False),
        (b"1\r\nx\r\n", True),
        (b"1\r\nx\r\n0", False),
        (b"1\r\nx\r\n0\r\n", False),
        (b"1\r\nx\r\n0\r\nA: b\r\n", False),
        (b"1\r\nx\r\n0\r\n\r\n", False),
    ],
    ids=repr,
)
def test_an_event_may_be_inserted_between_whole_chunks_only(
    received: bytes, is_between: bool
) -> None:
    body, _, _ = follow([received])

    assert body.is_between_chunks == is_between


# The short cut for streams ------------------------------------------------------------------------

near_chunks = st.one_of(
    st.binary(min_size=1, max_size=300).map(frame),
    st.builds(
        lambda data, cut, tail: frame(data)[:cut] + tail,
        st.binary(max_size=40),
        st.integers(0, 60),
        st.sampled_from([b"", b"\r\n", b"\n", b"x", b"\r\n\r\n", b"1\r\nx\r\n"]),
    ),
    st.text("0123456789abcdefx+-_ ;\r\n", max_size=30).map(str.encode),
)


@given(data=near_chunks)
def test_what_is_called_one_chunk_is_one_when_it_is_followed(data: bytes) -> None:
    if ChunkedBody().is_one_chunk(data):
        body, taken, payload = follow([data])

        assert taken == len(data)
        assert payload
        assert frame(payload)[-len(payload) - 4 :] == data[-len(payload) - 4 :]
        assert body.is_between_chunks


@given(payload=st.binary(min_size=1, max_size=300))
def test_every_plain_chunk_takes_the_short_cut(payload: bytes) -> None:
    body = ChunkedBody()

    assert body.is_one_chunk(frame(payload))
    assert body.is_between_chunks


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0\r\n\r\n",
        b"1\r\nx",
        b"1\r\nx\r\n1\r\ny\r\n",
        b"1\r\nx\r\n0\r\n\r\n",
        b"2\r\nx\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n\n",
        b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1;a\r\nx\r\n",
        b"-1\r\n\r\n",
        b"ffffffffffffffff\r\nx\r\n",
    ],
    ids=repr,
)
def test_anything_but_one_plain_chunk_with_data_is_looked_at_closely(data: bytes) -> None:
    assert not ChunkedBody().is_one_chunk(data)


@pytest.mark.parametrize("received", [b"5", b"9\r\n", b"9\r\n1\r\nx", b"1\r\nx", b"0\r\n"])
def test_within_a_chunk_nothing_is_taken_for_a_chunk_of_its_own(received: bytes) -> None:
    body, _, _ = follow([received])

    assert not body.is_one_chunk(b"1\r\nx\r\n")


def test_size_lines_beyond_counting_are_still_right_and_do_not_grow_the_memo() -> None:
    for size in range(1, chunked._MAX_SIZES + 500):
        assert ChunkedBody().is_one_chunk(frame(bytes(size % 7 + 1)))
        assert not ChunkedBody().is_one_chunk(b"%x\r\n\r\n" % size)

    assert len(chunked._SIZES) <= chunked._MAX_SIZES
    assert ChunkedBody().is_one_chunk(frame(bytes(65537)))


# Limits -------------------------------------------------------------------------------------------


def line_of(length: int) -> bytes:
    return b"1;" + b"a" * (length - 4) + b"\r\n"


def test_a_size_line_may_be_so_long_and_no_longer() -> None:
    assert follow([line_of(MAX_LINE_BYTES)])[1] == MAX_LINE_BYTES
    with pytest.raises(ChunkedError):
        follow([line_of(MAX_LINE_BYTES + 1)])


@pytest.mark.parametrize("start", [b"", b"1\r\nx", b"0\r\n"], ids=["size", "data end", "trailer"])
def test_a_line_without_an_end_is_refused_before_it_has_taken_memory(start: bytes) -> None:
    body, _, _ = follow([start])
    for _ in range(MAX_LINE_BYTES):
        body.feed(b"1")

    with pytest.raises(ChunkedError):
        body.feed(b"1")


def test_trailers_may_be_so_long_together_and_no_longer() -> None:
    line = b"x: " + b"a" * 59 + b"\r\n"
    fitting = MAX_TRAILER_BYTES // len(line)

    assert follow([b"0\r\n" + line * fitting + b"\r\n"])[0].is_done
    with pytest.raises(ChunkedError):
        follow([b"0\r\n" + line * (fitting + 1)])
