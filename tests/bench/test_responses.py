from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf_bench.records import Record
from llama_gguf_bench.responses import Response, error_message
from tests.support.engines import sse, text_event

DONE = sse("[DONE]")
ROLE = sse({"choices": [{"delta": {"role": "assistant", "content": None}}]})
USAGE = sse({"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 20}})
TIMINGS = {"cache_n": 4, "prompt_n": 6, "prompt_ms": 50.0, "predicted_n": 3, "predicted_ms": 200.0}


def read(*parts: bytes, streamed: bool = True, status: int = 200) -> Record:
    """The record of a response whose parts arrived one second apart."""
    response = Response(Record(0.0, 0.0), streamed=streamed)
    response.begin(status)
    for second, part in enumerate(parts, start=1):
        response.feed(part, float(second))
    response.end(float(len(parts)))
    return response.record


def test_the_first_token_is_the_first_event_with_text() -> None:
    record = read(ROLE, text_event("a"), text_event("b"), DONE)

    assert (record.first, record.last, record.ended) == (2.0, 3.0, 4.0)
    assert record.ok


def test_the_servers_usage_takes_precedence_over_the_number_of_events() -> None:
    record = read(text_event("a b c"), USAGE, DONE)

    assert (record.output_tokens, record.prompt_tokens, record.counted_by) == (7, 20, "usage")


def test_without_usage_llama_cpps_timings_are_used() -> None:
    last = sse({"choices": [{"delta": {}}], "timings": TIMINGS})

    record = read(text_event("a"), last, DONE)

    assert (record.output_tokens, record.prompt_tokens, record.counted_by) == (3, 10, "timings")
    assert (record.cached_tokens, record.engine_output_seconds) == (4, 0.2)


def test_usage_takes_precedence_over_timings_in_either_order() -> None:
    timings = sse({"timings": TIMINGS})

    assert read(timings, USAGE, DONE).output_tokens == 7
    assert read(USAGE, timings, DONE).output_tokens == 7


def test_without_usage_and_timings_events_with_text_are_counted() -> None:
    record = read(ROLE, text_event("a"), text_event("b"), DONE)

    assert (record.output_tokens, record.counted_by) == (2, "events")


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a"},
        {"delta": {"content": "a"}},
        {"delta": {"reasoning_content": "a"}},
        {"delta": {"content": None, "reasoning": "a"}},
        {"delta": {"refusal": "a"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
    ],
)
def test_all_output_of_the_model_is_text(choice: object) -> None:
    assert read(sse({"choices": [choice]}), DONE).first == 1.0


def test_a_stream_without_its_last_event_is_truncated() -> None:
    record = read(text_event("a"))

    assert record.error == "cut short"
    assert not record.ok


def test_an_error_in_the_stream_is_named() -> None:
    record = read(text_event("a"), sse({"error": {"code": "backend_error", "message": "x"}}))

    assert record.error == "error in the stream: backend_error"


def test_an_error_response_is_named_by_status_and_code() -> None:
    body = json.dumps({"error": {"code": "rate_limit_exceeded", "message": "Too many."}}).encode()

    assert read(body, status=429).error == "status 429 rate_limit_exceeded"
    assert error_message(body) == "Too many."


def test_an_error_response_without_an_envelope_is_named_by_status() -> None:
    assert read(b"<html>", status=502).error == "status 502"
    assert error_message(b"<html>") == ""


def test_a_response_in_one_piece_has_usage_and_no_first_token() -> None:
    document = {"choices": [{}], "usage": {"completion_tokens": 7, "prompt_tokens": 20}}

    record = read(json.dumps(document).encode(), streamed=False)

    assert record.ok
    assert (record.output_tokens, record.first, record.latency) == (7, None, 1.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"hello", b"\xff"])
def test_a_response_that_is_no_completion_is_an_error(body: bytes) -> None:
    assert read(body, streamed=False).error == "not a completion"


def test_cached_tokens_are_read_from_openais_field() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 16}}
    usage = {"completion_tokens": 1, "prompt_tokens": 20, **details}

    assert read(sse({"usage": usage}), DONE).cached_tokens == 16


@pytest.mark.parametrize(
    "payload",
    [
        "null",
        "3",
        '{"choices": 3}',
        '{"choices": [3]}',
        '{"choices": [{"delta": 3}]}',
        '{"usage": 3}',
        '{"usage": {"completion_tokens": "x", "prompt_tokens": true}}',
        '{"timings": {"predicted_n": -1, "predicted_ms": "x"}}',
        '{"error": 3}',
    ],
)
def test_events_of_any_shape_are_tolerated(payload: str) -> None:
    read(sse(payload), DONE)


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_any_split_of_the_input_gives_the_same_record(cuts: list[int]) -> None:
    whole = ROLE + text_event("a") + b": a comment\r\n\r\n" + text_event("b") + USAGE + DONE
    edges = [0, *sorted(min(c, len(whole)) for c in cuts), len(whole)]

    record = read(*(whole[a:b] for a, b in pairwise(edges)))

    assert record.ok
    assert len(record.gaps) == 1
    assert record.output_tokens == 7


FINISHED = sse({"choices": [{"delta": {}, "finish_reason": "stop"}]})


def test_a_stream_without_done_is_whole_if_a_finish_reason_came() -> None:
    record = read(text_event("a"), FINISHED, USAGE)

    assert record.ok
    assert record.output_tokens == 7


def test_text_after_a_finish_reason_is_of_another_choice_which_has_to_finish_too() -> None:
    assert read(text_event("a"), FINISHED, text_event("b")).error == "cut short"
    assert read(text_event("a"), FINISHED, text_event("b"), FINISHED).ok


def test_an_error_that_is_null_is_none() -> None:
    event = {"choices": [{"delta": {"content": "a"}}], "error": None}

    assert read(sse(event), DONE).ok


def test_a_byte_order_mark_before_the_stream_is_skipped() -> None:
    record = read(b"\xef\xbb", b"\xbf" + text_event("a"), text_event("b"), DONE)

    assert (record.ok, record.output_tokens, record.first) == (True, 2, 2.0)


def test_a_byte_order_mark_before_a_whole_response_is_skipped() -> None:
    body = {"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 3}}

    record = read(b"\xef\xbb\xbf" + json.dumps(body).encode(), streamed=False)

    assert (record.ok, record.output_tokens) == (True, 3)
