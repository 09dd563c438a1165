from __future__ import annotations

import pytest

from tests.gateway.test_client_hostile import HOSTILE, MALFORMED_CHUNKS
from tests.gateway.test_client_requests import CHUNKED, GOOD
from tests.support.messages import (
    OK,
    STREAM_HEAD,
    End,
    Malformed,
    event,
    request,
    take_request,
    take_response,
)


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_every_valid_request_is_read_to_its_end(raw: bytes) -> None:
    rest = raw
    while rest:
        found = take_request(rest)
        assert found is not None
        rest = found[1]


REJECTED_FOR_ANOTHER_REASON = {
    *("a method in small letters", "an unknown method", "HTTP/2's preface", "ICE"),
    *("TRACE", "TRACE with a Max-Forwards", "CONNECT with a path"),
    *("an unknown expectation", "two expectations"),
}
AMBIGUOUS = {n: raw for n, (_, raw) in HOSTILE.items() if n not in REJECTED_FOR_ANOTHER_REASON}


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_ambiguous_request_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        take_request(raw)


@pytest.mark.parametrize("body", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS.keys())
def test_malformed_chunks_contain_no_request(body: bytes) -> None:
    try:
        found = take_request(request("POST", "/v1/embeddings", CHUNKED) + body)
    except Malformed:
        found = None

    assert found is None


def test_a_response_is_whole_after_its_last_byte() -> None:
    for size in range(len(OK)):
        found = take_response(OK[:size])
        assert found is None or found[0].end is End.OPEN

    found = take_response(OK + b"behind")
    assert found is not None
    assert (found[0].body, found[0].end, found[1]) == (b'{"ok":true}', End.WHOLE, b"behind")


def test_a_response_that_ends_with_its_connection_is_open_until_then() -> None:
    raw = b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\n\r\nabc"
    for has_ended, end in ((False, End.OPEN), (True, End.WHOLE)):
        found = take_response(raw, has_ended=has_ended)
        assert found is not None
        assert (found[0].body, found[0].end) == (b"abc", end)


def test_a_chunk_longer_than_its_size_breaks_the_response() -> None:
    found = take_response(STREAM_HEAD + event(1) + b"2\r\nabc\r\n")

    assert found is not None
    assert found[0].end is End.BROKEN
