from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1 import chunked
from llama_gguf.http1.chunked import (
    MAX_LINE_BYTES,
    MAX_TRAILER_BYTES,
    TAIL_BYTES,
    ChunkedBody,
    ChunkedError,
    frame,
    is_one_chunk,
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
    """The body after *pieces*, the number of bytes that it consumed, and the payload."""
    body, sink = ChunkedBody(), bytearray()
    taken = sum([body.feed(piece, sink) for piece in pieces])
    return body, taken, bytes(sink)


# What belongs to a body ---------------------------------------------------------------------------


@given(wire_and_payload=bodies, cuts=cuts)
def test_a_body_is_the_same_for_every_split(
    wire_and_payload: tuple[bytes, bytes], cuts: list[int]
) -> None:
    wire, payload = wire_and_payload

    body, taken, decoded = follow(split(wire, cuts))

    assert (body.is_done, taken, decoded) == (True, len(wire), payload)


@given(wire_and_payload=bodies, surplus=st.binary(min_size=1, max_size=20), cuts=cuts)
def test_bytes_after_the_end_are_not_consumed(
    wire_and_payload: tuple[bytes, bytes], surplus: bytes, cuts: list[int]
) -> None:
    wire, payload = wire_and_payload

    body, taken, decoded = follow(split(wire + surplus, cuts))

    assert (body.is_done, taken, decoded) == (True, len(wire), payload)


@given(wire_and_payload=bodies, data=st.data())
def test_a_truncated_body_is_not_complete(
    wire_and_payload: tuple[bytes, bytes], data: st.DataObject
) -> None:
    wire, payload = wire_and_payload
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]

    body, taken, decoded = follow([cut])

    assert not body.is_done
    assert taken == len(cut)
    assert payload.startswith(decoded)


@given(payloads=st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_a_framed_chunk_can_be_decoded(payloads: list[bytes]) -> None:
    _, taken, decoded = follow([wire := b"".join(map(frame, payloads))])

    assert (taken, decoded) == (len(wire), b"".join(payloads))


@given(wire_and_payload=bodies, cuts=cuts)
def test_the_tail_is_the_end_of_the_payload_for_every_split(
    wire_and_payload: tuple[bytes, bytes], cuts: list[int]
) -> None:
    wire, payload = wire_and_payload

    body, _, _ = follow(split(wire, cuts))

    assert body.tail == payload[-TAIL_BYTES:]


@given(wire_and_payload=bodies, surplus=st.binary(max_size=20), cuts=cuts)
def test_whether_the_payload_is_collected_or_not_all_else_is_the_same(
    wire_and_payload: tuple[bytes, bytes], surplus: bytes, cuts: list[int]
) -> None:
    # Cut between chunks, too, where pieces are whole chunks.
    wire = wire_and_payload[0]
    ends = [i + 2 for i in range(len(wire)) if wire[i : i + 2] == b"\r\n"]
    collecting, passing = ChunkedBody(), ChunkedBody()

    for piece in split(wire + surplus, [*cuts, *(ends[c % len(ends)] for c in cuts)]):
        assert passing.feed(piece) == collecting.feed(piece, bytearray())
        assert passing.is_done == collecting.is_done
        assert passing.is_between_chunks == collecting.is_between_chunks
        assert passing.tail == collecting.tail


def test_a_payload_that_looks_like_chunks_is_a_payload() -> None:
    body = ChunkedBody()
    inner = frame(b"abcd") + chunked.LAST_CHUNK

    body.feed(b"%x\r\n" % len(inner))
    body.feed(inner)
    assert not body.is_done

    body.feed(b"\r\n")
    assert body.is_between_chunks
    assert body.tail == inner[-TAIL_BYTES:]


def test_the_payload_is_not_collected_without_a_sink() -> None:
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


def is_plain_chunk(data: bytes) -> bool:
    """Whether, by ``feed``, *data* is one chunk, not too small, as ``frame`` writes it."""
    try:
        _, _, payload = follow([data])
    except ChunkedError:
        return False
    return len(payload) >= TAIL_BYTES and frame(payload) == data


@given(data=near_chunks)
def test_only_one_plain_chunk_takes_the_short_cut(data: bytes) -> None:
    assert is_one_chunk(data) == is_plain_chunk(data)


@given(data=near_chunks)
def test_after_the_short_cut_the_body_is_between_chunks(data: bytes) -> None:
    if is_one_chunk(data):
        body, taken, _ = follow([data])

        assert taken == len(data)
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
        b"A\r\n0123456789\r\n",
        b"0a\r\n0123456789\r\n",
    ],
    ids=repr,
)
def test_anything_but_one_plain_chunk_with_data_is_looked_at_closely(data: bytes) -> None:
    assert not is_one_chunk(data)


ZEROS = bytes(70_000)


def lines_in(length: int) -> set[bytes]:
    """Beginnings of a chunk of *length* bytes in all, valid ones and nearly valid ones."""
    digits = len(b"%x" % length)
    size = max(length - digits - 4, 0)
    line = b"%x\r\n" % size
    return {line, line.upper(), b"%x\r\n" % (size + 1), b"0%x\r\n" % max(size - 1, 0)}


def of_length(length: int, line: bytes) -> bytes:
    """*line*, zeros, and a line end: *length* bytes in all.

    Zeros begin no chunk, so if ``feed`` takes that to its end it is one and not several.
    """
    start = line[: max(length - 2, 0)]
    return b"".join((start, memoryview(ZEROS)[: length - len(start) - 2], b"\r\n"))[-length:]


@pytest.mark.slow
def test_every_length_has_at_most_one_size_line_that_takes_the_short_cut() -> None:
    for length in range(1, len(ZEROS) + 1):
        for line in lines_in(length):
            data = of_length(length, line)
            body = ChunkedBody()
            is_chunk = False
            with suppress(ChunkedError):
                # Collected lines do not use the short cut.
                is_chunk = body.feed(data, bytearray()) == length and body.is_between_chunks

            size = length - len(line) - 2
            is_plain = size >= TAIL_BYTES and line == b"%x\r\n" % size

            assert is_one_chunk(data) == (is_chunk and is_plain), (line, length)


@pytest.mark.parametrize("length", [*range(1, 9), 21, 262, 4103, 65544])
@pytest.mark.parametrize("start", [b"-", b"\n", b"0", b"\r\n", b"", b"f" * 70_000, b"\n" * 70_000])
def test_a_length_that_no_plain_chunk_has_never_takes_the_short_cut(
    start: bytes, length: int
) -> None:
    assert not is_one_chunk(of_length(length, start))


def test_every_plain_chunk_takes_the_short_cut_when_its_end_is_right() -> None:
    for size in range(1, len(ZEROS)):
        data = frame(ZEROS[:size])

        assert is_one_chunk(data) == (size >= TAIL_BYTES)
        assert not is_one_chunk(data[:-1] + b"\r")


def test_lengths_beyond_counting_do_not_grow_the_memos() -> None:
    for length in range(2 * chunked._MAX_REMEMBERED):
        is_one_chunk(ZEROS[:length])
        ChunkedBody().feed(b"%x\r\n" % length)

    assert len(chunked._SIZE_LINES) <= chunked._MAX_REMEMBERED
    assert len(chunked._SIZES) <= chunked._MAX_REMEMBERED
    assert is_one_chunk(frame(bytes(65537)))
    body = ChunkedBody()
    body.feed(frame(bytes(65537)) + chunked.LAST_CHUNK, bytearray())
    assert body.is_done


# Limits -------------------------------------------------------------------------------------------


def line_of(length: int) -> bytes:
    return b"1;" + b"a" * (length - 4) + b"\r\n"


def test_a_size_line_may_be_so_long_and_no_longer() -> None:
    assert follow([line_of(MAX_LINE_BYTES)])[1] == MAX_LINE_BYTES
    with pytest.raises(ChunkedError):
        follow([line_of(MAX_LINE_BYTES + 1)])


@pytest.mark.parametrize("start", [b"", b"1\r\nx", b"0\r\n"], ids=["size", "data end", "trailer"])
def test_a_line_without_an_end_is_rejected_before_it_costs_memory(start: bytes) -> None:
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
