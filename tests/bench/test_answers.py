from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf_bench.answers import Answer, error_message
from llama_gguf_bench.records import Record
from tests.support.engines import sse, text_event

DONE = sse("[DONE]")
ROLE = sse({"choices": [{"delta": {"role": "assistant", "content": None}}]})
USAGE = sse({"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 20}})
TIMINGS = {"cache_n": 4, "prompt_n": 6, "prompt_ms": 50.0, "predicted_n": 3, "predicted_ms": 200.0}


def read(*parts: bytes, streamed: bool = True, status: int = 200) -> Record:
    """What an answer leaves whose parts came a second apart."""
    answer = Answer(Record(0.0, 0.0), streamed=streamed)
    answer.begin(status)
    for second, part in enumerate(parts, start=1):
        answer.feed(part, float(second))
    answer.end(float(len(parts)))
    return answer.record


def test_the_first_token_is_the_first_event_with_text() -> None:
    record = read(ROLE, text_event("a"), text_event("b"), DONE)

    assert (record.first, record.last, record.ended) == (2.0, 3.0, 4.0)
    assert record.ok


def test_the_servers_usage_is_believed_rather_than_the_number_of_events() -> None:
    record = read(text_event("a b c"), USAGE, DONE)

    assert (record.output_tokens, record.prompt_tokens, record.counted_by) == (7, 20, "usage")


def test_without_usage_llama_cpps_timings_are_taken() -> None:
    last = sse({"choices": [{"delta": {}}], "timings": TIMINGS})

    record = read(text_event("a"), last, DONE)

    assert (record.output_tokens, record.prompt_tokens, record.counted_by) == (3, 10, "timings")
    assert (record.cached_tokens, record.engine_output_seconds) == (4, 0.2)


def test_usage_beats_timings_in_either_order() -> None:
    timings = sse({"timings": TIMINGS})

    assert read(timings, USAGE, DONE).output_tokens == 7
    assert read(USAGE, timings, DONE).output_tokens == 7


def test_without_both_events_with_text_are_counted() -> None:
    record = read(ROLE, text_event("a"), text_event("b"), DONE)

    assert (record.output_tokens, record.counted_by) == (2, "events")


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a"},
        {"delta": {"content": "a"}},
        {"delta": {"reasoning_content": "a"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
    ],
)
def test_whatever_the_model_writes_is_text(choice: object) -> None:
    assert read(sse({"choices": [choice]}), DONE).first == 1.0


def test_a_stream_without_its_last_word_is_cut_short() -> None:
    record = read(text_event("a"))

    assert record.error == "cut short"
    assert not record.ok


def test_an_error_in_the_stream_is_named() -> None:
    record = read(text_event("a"), sse({"error": {"code": "backend_error", "message": "x"}}))

    assert record.error == "error in the stream: backend_error"


def test_a_refusal_is_named_by_status_and_code() -> None:
    body = json.dumps({"error": {"code": "rate_limit_exceeded", "message": "Too many."}}).encode()

    assert read(body, status=429).error == "status 429 rate_limit_exceeded"
    assert error_message(body) == "Too many."


def test_a_refusal_without_an_envelope_is_named_by_status() -> None:
    assert read(b"<html>", status=502).error == "status 502"
    assert error_message(b"<html>") == ""


def test_a_whole_answer_has_usage_and_no_first_token() -> None:
    said = {"choices": [{}], "usage": {"completion_tokens": 7, "prompt_tokens": 20}}

    record = read(json.dumps(said).encode(), streamed=False)

    assert record.ok
    assert (record.output_tokens, record.first, record.latency) == (7, None, 1.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"hello", b"\xff"])
def test_what_is_no_completion_is_said_to_be_none(body: bytes) -> None:
    assert read(body, streamed=False).error == "not a completion"


def test_cached_tokens_are_found_where_openai_tells_them() -> None:
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
def test_events_of_any_shape_are_borne(payload: str) -> None:
    read(sse(payload), DONE)


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_where_the_network_cuts_does_not_matter(cuts: list[int]) -> None:
    whole = ROLE + text_event("a") + b": a comment\r\n\r\n" + text_event("b") + USAGE + DONE
    edges = [0, *sorted(min(c, len(whole)) for c in cuts), len(whole)]

    record = read(*(whole[a:b] for a, b in pairwise(edges)))

    assert record.ok
    assert len(record.gaps) == 1
    assert record.output_tokens == 7
