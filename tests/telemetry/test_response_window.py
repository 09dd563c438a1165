from __future__ import annotations

import pytest

from llama_gguf.telemetry.response_window import ResponseWindow
from llama_gguf.telemetry.token_usage import ENDING_BYTES, OPENING_BYTES
from tests.support.messages import bytewise, chunk, event

COMMENT = chunk(b":\n\n")


def relay(window: ResponseWindow, data: bytes) -> None:
    """As ``UpstreamConnection`` does with a whole chunk."""
    window.before_last, window.last_chunk = window.last_chunk, data


def test_a_stream_begins_with_its_first_event_not_with_a_comment() -> None:
    window = ResponseWindow(is_event_stream=True)

    assert [window.add(data) for data in (COMMENT, event(1), event(2))] == [False, True, False]
    assert window.opening == event(1) + event(2)


def test_a_first_event_that_arrives_in_two_reads_is_kept_whole() -> None:
    start = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":8}}}\n\n'
    window = ResponseWindow(is_event_stream=True)

    for part in (start[:40], start[40:], event(1) * 100):
        window.add(part)

    assert window.opening.startswith(start)
    assert len(window.opening) == OPENING_BYTES


def test_any_other_response_begins_with_its_first_byte() -> None:
    window = ResponseWindow(is_event_stream=False)

    assert window.add(b'{"data:')
    assert not window.add(b'"}')
    assert window.opening == b'{"data:"}'
    assert window.ending == b'{"data:"}'


@pytest.mark.parametrize("relayed", range(4))
def test_the_ending_has_all_of_a_short_stream_in_order(relayed: int) -> None:
    window = ResponseWindow(is_event_stream=True)
    window.add(event(1))
    chunks = [event(n) for n in range(2, 2 + relayed)]
    for data in chunks:
        relay(window, data)
    # Of three and more relayed chunks, the last two are kept.
    kept = event(1) + b"".join(chunks[-2:])
    assert window.ending == kept

    window.join_chunks()
    window.add(b"5\r\nda")

    assert window.ending == kept + b"5\r\nda"
    assert window.last_chunk == window.before_last == b""


def test_memory_is_bounded_however_the_bytes_arrive() -> None:
    window = ResponseWindow(is_event_stream=False)
    for _ in range(100):
        window.add(b"y" * 60_000)
        window.add(b"x" * 1000)
    assert len(window.opening) <= OPENING_BYTES
    assert len(window.ending) <= 2 * ENDING_BYTES
    for byte in bytewise(b"z" * (2 * ENDING_BYTES)):
        window.add(byte)

    assert ENDING_BYTES <= len(window.ending) <= 2 * ENDING_BYTES
    assert window.ending.endswith(b"z" * ENDING_BYTES)
