from __future__ import annotations

import pytest

from llama_gguf.http1.chunked import LAST_CHUNK, ChunkedError, frame
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.response_body import ResponseBody
from tests.support.messages import bytewise, splits

EVENT = b"data: {}\n\n"
TRAILER = b"0\r\nX-Checksum: 1\r\n\r\n"


def fed(body: ResponseBody, *pieces: bytes) -> tuple[int, bytes]:
    """The bytes of *pieces* that belong to *body*, and those that the client receives."""
    results = [body.feed(piece) for piece in pieces]
    return sum(taken for taken, _ in results), b"".join(relayed for _, relayed in results)


@pytest.mark.parametrize("pieces", list(splits(b"hello" + b"surplus")))
def test_a_body_with_a_length_ends_with_its_length(pieces: tuple[bytes, ...]) -> None:
    body = ResponseBody(Framing.LENGTH, 5, reads_chunks=True)
    before = body.is_complete

    assert fed(body, *pieces) == (5, b"hello")
    assert (before, body.is_complete) == (False, True)
    assert body.end() is None


@pytest.mark.parametrize(("framing", "length"), [(Framing.LENGTH, 0), (Framing.NONE, 5)])
def test_a_response_without_a_body_is_complete_at_once(framing: Framing, length: int) -> None:
    body = ResponseBody(framing, length, reads_chunks=True)

    assert body.is_complete
    assert body.feed(b"surplus") == (0, b"")


@pytest.mark.parametrize("end", [LAST_CHUNK, TRAILER])
def test_chunks_are_relayed_as_they_are_up_to_the_last(end: bytes) -> None:
    whole = frame(EVENT) + frame(b"more") + end
    for pieces in splits(whole + b"surplus"):
        body = ResponseBody(Framing.CHUNKED, 0, reads_chunks=True)

        assert body.is_relayed
        assert fed(body, *pieces) == (len(whole), whole)
        assert body.is_complete


def test_a_client_of_http_1_0_receives_the_content_of_the_chunks() -> None:
    whole = frame(EVENT) + frame(b"more") + LAST_CHUNK
    for pieces in splits(whole):
        body = ResponseBody(Framing.CHUNKED, 0, reads_chunks=False)

        assert not body.is_relayed
        assert fed(body, *pieces) == (len(whole), EVENT + b"more")
        assert body.is_complete


def test_an_event_may_be_inserted_only_where_a_chunk_has_ended() -> None:
    body = ResponseBody(Framing.CHUNKED, 0, reads_chunks=True)
    found = []
    for byte in bytewise(frame(b"x") + b"1"):
        body.feed(byte)
        found.append(body.is_between_chunks)

    assert found == [False] * 5 + [True, False]
    assert not ResponseBody(Framing.CLOSE, 0, reads_chunks=True).is_between_chunks


def test_the_end_of_a_chunk_that_was_relayed_without_it_is_the_tail() -> None:
    body = ResponseBody(Framing.CHUNKED, 0, reads_chunks=True)
    body.feed(frame(b"before"))
    assert body.tail == b"fore"
    body.follow_chunks(b"last")
    assert body.tail == b"last"
    body.feed(frame(b"!")[:4])

    assert body.tail == b"ast!"


@pytest.mark.parametrize(("reads_chunks", "end"), [(True, LAST_CHUNK), (False, b"")])
def test_a_body_that_ends_with_its_connection_ends_for_the_client_as_well(
    reads_chunks: bool, end: bytes
) -> None:
    body = ResponseBody(Framing.CLOSE, 0, reads_chunks=reads_chunks)
    relayed = frame(b"all") if reads_chunks else b"all"

    assert fed(body, b"", b"all") == (3, relayed)
    assert not body.is_complete
    assert not body.is_relayed
    assert body.end() == end


@pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED])
def test_a_body_with_an_end_of_its_own_is_not_whole_when_its_connection_ends(
    framing: Framing,
) -> None:
    assert ResponseBody(framing, 5, reads_chunks=True).end() is None


def test_what_is_not_in_the_coding_is_an_error() -> None:
    with pytest.raises(ChunkedError):
        ResponseBody(Framing.CHUNKED, 0, reads_chunks=True).feed(b"nonsense\r\n")
