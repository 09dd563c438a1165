from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import BadRequest
from llama_gguf.http1.body import IncomingBody
from llama_gguf.http1.chunked import frame

cuts = st.lists(st.integers(0, 120), max_size=8)


def split(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[i:j] for i, j in itertools.pairwise(places)]


def feed(body: IncomingBody, pieces: list[bytes]) -> bytes | None:
    """What follows the body, including *pieces* that were not fed to it."""
    for n, piece in enumerate(pieces):
        behind = body.feed(piece)
        if behind is not None:
            return behind + b"".join(pieces[n + 1 :])
    return None


# With a length ------------------------------------------------------------------------------------


@given(content=st.binary(min_size=1, max_size=60), behind=st.binary(max_size=30), cuts=cuts)
def test_a_body_with_a_length_is_the_same_for_every_split(
    content: bytes, behind: bytes, cuts: list[int]
) -> None:
    body = IncomingBody(len(content))

    assert feed(body, split(content + behind, cuts)) == behind
    assert (bytes(body.data), body.remaining) == (content, 0)


@given(content=st.binary(max_size=60), missing=st.integers(1, 9), cuts=cuts)
def test_an_incomplete_body_knows_its_remaining_bytes(
    content: bytes, missing: int, cuts: list[int]
) -> None:
    body = IncomingBody(len(content) + missing)

    assert feed(body, split(content, cuts)) is None
    assert (bytes(body.data), body.remaining) == (content, missing)


def test_an_empty_body_consumes_nothing() -> None:
    body = IncomingBody(0)

    assert body.feed(b"GET / HTTP/1.1\r\n") == b"GET / HTTP/1.1\r\n"
    assert (bytes(body.data), body.remaining) == (b"", 0)


def test_a_body_with_a_length_may_contain_any_bytes() -> None:
    content = b"0\r\n\r\nPOST / HTTP/1.1\r\n\r\n"
    body = IncomingBody(len(content))

    assert body.feed(content) == b""
    assert body.data == content


# Chunked ------------------------------------------------------------------------------------------

payloads = st.lists(st.binary(min_size=1, max_size=30), max_size=4)


@given(payloads=payloads, behind=st.binary(max_size=30), cuts=cuts)
def test_a_chunked_body_is_decoded_the_same_for_every_split(
    payloads: list[bytes], behind: bytes, cuts: list[int]
) -> None:
    body = IncomingBody(None)
    wire = b"".join([*map(frame, payloads), b"0\r\n\r\n", behind])

    assert feed(body, split(wire, cuts)) == behind
    assert (bytes(body.data), body.remaining) == (b"".join(payloads), 0)


@given(payloads=payloads, missing=st.integers(1, 5), cuts=cuts)
def test_a_chunked_body_without_its_end_is_incomplete(
    payloads: list[bytes], missing: int, cuts: list[int]
) -> None:
    body = IncomingBody(None)
    wire = b"".join([*map(frame, payloads), b"0\r\n\r\n"])[:-missing]

    assert feed(body, split(wire, cuts)) is None
    assert body.data == b"".join(payloads)
    assert body.remaining == 0, "nobody knows"


@pytest.mark.parametrize("wire", [b"x\r\n", b"1\r\nab\r\n", b"1\n", b"0\r\nHost: a\r\n\r\n"])
def test_invalid_chunked_coding_is_a_bad_request(wire: bytes) -> None:
    with pytest.raises(BadRequest, match="cannot be read") as raised:
        IncomingBody(None).feed(wire)

    assert raised.value.close, "where the next request begins cannot be said"
