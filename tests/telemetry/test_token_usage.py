"""The usage in responses. Those in ``answers/`` were recorded from llama-server b1-571d0d5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.exchange_record import Usage
from llama_gguf.telemetry.token_usage import ENDING_BYTES, OPENING_BYTES, read

ANSWERS: Final = Path(__file__).parent / "answers"

TOLD: Final = {
    "chat": Usage(33, 6, 0, 0.077628, prompting=286.014 / 1000),
    "chat_stream": Usage(33, 4, 32, 0.044815, prompting=16.568 / 1000),
    "chat_stream_usage": Usage(33, 4, 32, 0.044815, prompting=16.133 / 1000),
    "completion": Usage(1, 5, 0, 0.050914, prompting=13.057 / 1000),
    "completion_stream": Usage(1, 5, 0, 0.04444, prompting=12.595 / 1000),
    "completions": Usage(1, 5, 0, 48.035 / 1000, prompting=11.603 / 1000),
    "completions_stream": Usage(1, 5, 0, 0.061564, prompting=14.104 / 1000),
    "embeddings": Usage(3, None, None),
    "messages": Usage(33, 5, 32),
    "messages_stream": Usage(33, 5, 32),
    "rerank": Usage(4, None, None),
    "responses": Usage(33, 5, 32),
    "responses_stream": Usage(33, 5, 32, 0.045543, prompting=11.066 / 1000),
    # These have no usage.
    "count": None,
    "error": None,
    "rerank_tei": None,
    "metrics": None,
}


def body(name: str) -> bytes:
    """llama-server's response as received: a stream includes the framing of its chunks."""
    return (ANSWERS / f"{name}.http").read_bytes().partition(b"\r\n\r\n")[2]


def ends(response: bytes) -> tuple[bytes, bytes]:
    return response[:OPENING_BYTES], response[-ENDING_BYTES:]


# llama-server's responses -------------------------------------------------------------------------


def test_every_recorded_response_is_tested() -> None:
    assert {path.stem for path in ANSWERS.iterdir()} == TOLD.keys()


@pytest.mark.parametrize(("name", "usage"), TOLD.items())
def test_llama_server_s_usage_is_read_on_every_route(name: str, usage: Usage | None) -> None:
    assert read(*ends(body(name))) == usage


@pytest.mark.parametrize(("name", "usage"), TOLD.items())
def test_a_complete_response_needs_no_separate_beginning(name: str, usage: Usage | None) -> None:
    assert read(b"", body(name)) == usage


@pytest.mark.parametrize("name", ["chat_stream", "completions_stream", "completion_stream"])
def test_a_truncated_stream_has_no_usage(name: str) -> None:
    whole = body(name)
    cut = whole[: whole.index(b'"timings"')].rpartition(b"data: ")[0]

    assert read(*ends(cut)) is None


def test_a_truncated_anthropic_stream_has_the_usage_of_its_prompt() -> None:
    whole = body("messages_stream")
    cut = whole[: whole.index(b"event: message_delta")]

    assert read(*ends(cut)) == Usage(33, None, 32, is_whole=False)


def test_an_anthropic_stream_without_its_start_has_no_usage_of_its_prompt() -> None:
    whole = body("messages_stream")
    start = whole[: whole.index(b"event: content_block_start")]

    assert read(*ends(whole.replace(start, b""))) == Usage(None, 5, None, is_whole=False)


# Others' ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_openai_s_usage_is_read_with_all_kinds_of_white_space(separators: tuple[str, str]) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    response = {"choices": [{"message": {"content": "hi"}}], "usage": usage}

    assert read(b"", json.dumps(response, separators=separators).encode()) == Usage(12, 34, None)


def test_the_last_of_a_stream_s_usages_counts() -> None:
    events = [
        b'data: {"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n' % n for n in range(1, 5)
    ]
    stream = b"".join([*events, b'data: {"usage":null}\n\n', b"data: [DONE]\n\n"])

    assert read(*ends(stream.replace(b'{"usage":null}', b'{"choices":[]}'))) == Usage(9, 4, None)


def test_timings_of_another_build_are_read_as_well() -> None:
    timings = b'"timings":{"prompt_n":3,"new":1,"predicted_n":7,"predicted_ms":14.5,"cache_n":2}}'

    assert read(b"", b'{"content":"x",' + timings) == Usage(5, 7, 2, 0.0145)


def test_a_response_without_output_tokens_is_complete() -> None:
    timings = (
        b'"timings":{"cache_n":0,"prompt_n":3,"prompt_ms":1.5,"predicted_n":0,"predicted_ms":0.0}}'
    )
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":0,"total_tokens":3}}'

    assert read(b"", b'{"content":"",' + timings) == Usage(3, None, 0, prompting=0.0015)
    assert read(b"", b'{"choices":[],' + usage) == Usage(3, None, None)


# What cannot be forged or misread -----------------------------------------------------------------


def test_text_that_looks_like_usage_is_text() -> None:
    lie = '"usage":{"prompt_tokens":1,"completion_tokens":999}, "timings":{"predicted_n":999}'
    response = json.dumps({"choices": [{"message": {"content": lie}}]}).encode()

    assert read(b"", response) is None


def test_a_tool_s_arguments_do_not_pass_for_usage() -> None:
    # The one place where llama-server writes a model's text as JSON and not as a string.
    lie = {"usage": {"prompt_tokens": 1, "completion_tokens": 999}, "cached_tokens": 7}
    response = {
        "content": [{"type": "tool_use", "input": lie}],
        "usage": {"cache_read_input_tokens": 32, "input_tokens": 1, "output_tokens": 5},
    }

    assert read(b"", json.dumps(response).encode()) == Usage(33, 5, 32)


def test_a_number_cut_by_the_framing_of_a_chunk_is_ignored() -> None:
    whole = b'{"usage":{"completion_tokens":12'
    rest = b'34,"prompt_tokens":5}}'
    stream = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole, len(rest), rest)

    assert read(*ends(stream)) == Usage(5, None, None, is_whole=False)


def test_numbers_with_too_many_digits_are_ignored() -> None:
    digits = b"9" * 4000
    response = b'{"usage":{"prompt_tokens":%b,"completion_tokens":5}}' % digits

    assert read(b"", response) is None  # the end of the number is outside the searched part
    assert read(b"", b'{"usage":{"prompt_tokens":-5,"completion_tokens":1e5}}') is None


# Any bytes ----------------------------------------------------------------------------------------

PIECES: Final = (
    *(b'"usage":', b'"timings":', b"{", b"}", b",", b'"prompt_tokens":', b'"completion_tokens":'),
    *(b'"input_tokens":', b'"output_tokens":', b'"cached_tokens":', b'"cache_n":', b'"prompt_n":'),
    *(b'"predicted_n":', b'"predicted_ms":', b'"cache_read_input_tokens":', b"12", b"0", b"1.5"),
    *(b"null", b" ", b"\r\n", b"data: ", b'\\"', b"-1", b"9" * 20, b"\xff", b'"prompt_ms":1,'),
)


@given(
    opening=st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map(b"".join)),
    ending=st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map(b"".join)),
)
def test_any_bytes_are_usage_or_none(opening: bytes, ending: bytes) -> None:
    usage = read(opening, ending)

    if usage is None:
        return
    assert usage.prompt is not None or usage.completion is not None
    for count in (usage.prompt, usage.completion, usage.cached):
        assert count is None or 0 <= count < 10**16
    assert usage.generating is None or usage.generating >= 0


@given(
    name=st.sampled_from(sorted(TOLD)),
    at=st.integers(0, 4000),
    put=st.binary(max_size=4),
    taken=st.integers(0, 4),
)
def test_a_mutated_response_gives_usage_or_none(name: str, at: int, put: bytes, taken: int) -> None:
    whole = body(name)
    read(*ends(whole[:at] + put + whole[at + taken :]))


def test_a_long_response_is_not_searched_in_its_middle() -> None:
    middle = b'"usage":{"prompt_tokens":7,"completion_tokens":7}' + b'{"' * 2**22

    assert read(b"", middle[:60].rjust(OPENING_BYTES * 2) + middle) is None
