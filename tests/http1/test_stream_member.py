from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.stream_member import STEP_EFFORT, WINDOW_BYTES, StreamSearch


def asks_for_stream(
    body: bytes | bytearray, *, window_bytes: int = WINDOW_BYTES, effort: int = 1
) -> bool:
    search = StreamSearch(window_bytes=window_bytes)
    while search.answer is None:
        search.advance(body, effort)
    return search.answer


@pytest.mark.parametrize(
    ("body", "does"),
    [
        (b'{"stream":true}', True),
        (b' \r\n\t{ "a": 1, "stream" :\n true, "b": 2 } ', True),
        (b'\xef\xbb\xbf{"stream": true}', True),
        (b'{"\\u0073tream":true}', True),
        (b'{"\\u0073\\u0074\\u0072\\u0065\\u0061\\u006D":true}', True),
        (b'{"stream":false,"str\\u0065am":true}', True),
        (b'{"a":[[{"b":"}"}]],"c":"\\"","d":{},"stream":true}', True),
        (b'{"stream":false}', False),
        (b'{"stream":1}', False),
        (b'{"stream":"true"}', False),
        (b'{"stream":[true]}', False),
        (b'{"stream":null}', False),
        (b'{"Stream":true}', False),
        (b'{"stream ":true}', False),
        (b'{"stream\\u0000":true}', False),
        (b'{"stream":true,"stream":false}', False),
        (b'{"stream":true,"\\u0073tream":{}}', False),
        (b'{"messages":[{"stream":true}]}', False),
        (b'{"a":{"stream":true}}', False),
        (b'{"prompt":"\\"stream\\":true"}', False),
        (b'{"prompt":"\\\\","stream":true}', True),
        (b"{}", False),
    ],
)
def test_a_stream_is_requested_by_the_outermost_object(body: bytes, does: bool) -> None:
    for window_bytes in (2, 3, 7, WINDOW_BYTES):
        assert asks_for_stream(body, window_bytes=window_bytes) == does
        assert asks_for_stream(bytearray(body), window_bytes=window_bytes) == does


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[" * 100_000 + b'"stream":true',
        b'[{"stream":true}]',
        b'"stream":true',
        b'{"stream":true',
        b'{"stream":true}}',
        b'{"stream":true} x',
        b'{"stream":true,}',
        b'{,"stream":true}',
        b'{"stream":truex}',
        b'{"stream":true "a":1}',
        b'{"stream"true}',
        b'{"stream":}',
        b'{"a":"\n","stream":true}',
        b'{"a":"\\',
        b'{"a":"b',
        b'{"a":[1,',
        b'{"a":1',
        b'{"\\q":1,"stream":true}',
        b'{a:1,"stream":true}',
        '{"stream":true}'.encode("utf-16"),
        '{"stream":true}'.encode("utf-32-le"),
    ],
)
def test_a_document_that_is_no_object_requests_no_stream(body: bytes) -> None:
    for window_bytes in (2, 3, 7, WINDOW_BYTES):
        assert not asks_for_stream(body, window_bytes=window_bytes)


# Against json.loads -------------------------------------------------------------------------------

NAMES = st.sampled_from(["stream", "streams", "a", "", '"stream":true', "\\", "}", "é"])
TEXTS = NAMES | st.text(max_size=8) | st.text('"\\{}[]:,truestream', max_size=12)
SPACES = st.text(" \t\r\n", max_size=2)
LEAVES = (
    st.sampled_from(["true", "false", "null", "0", "-1.5e+3", "NaN"])
    | TEXTS.map(json.dumps)
    | TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False))
)


@st.composite
def written(draw: st.DrawFn, text: str) -> str:
    """*text* as a string of JSON, any of its letters as an escape."""
    written = [
        f"\\u{ord(letter):04x}" if letter.isalpha() and draw(st.booleans()) else letter
        for letter in json.dumps(text, ensure_ascii=False)[1:-1]
    ]
    # The letter of an escape cannot itself be an escape.
    plain = '"' + "".join(written) + '"'
    return plain if "\\" not in text and '"' not in text else json.dumps(text)


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    return "[" + ",".join(draw(st.lists(values, max_size=4))) + draw(SPACES) + "]"


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    members = [
        draw(SPACES) + name + draw(SPACES) + ":" + draw(SPACES) + value + draw(SPACES)
        for name, value in draw(st.lists(st.tuples(NAMES.flatmap(written), values), max_size=5))
    ]
    return "{" + (",".join(members) or draw(SPACES)) + "}"


VALUES = st.recursive(LEAVES, lambda values: arrays(values) | objects(values), max_leaves=12)


def by_json(body: str) -> bool:
    said: Any = json.loads(body)
    return isinstance(said, dict) and said.get("stream") is True


@given(
    before=SPACES,
    body=objects(VALUES) | VALUES,
    behind=SPACES,
    window_bytes=st.integers(2, 40) | st.just(WINDOW_BYTES),
    effort=st.integers(1, 4 * STEP_EFFORT),
)
def test_the_result_is_that_of_json_wherever_the_search_pauses(
    before: str, body: str, behind: str, window_bytes: int, effort: int
) -> None:
    document = before + body + behind
    raw = document.encode()

    assert asks_for_stream(raw, window_bytes=window_bytes, effort=effort) == by_json(document)


@given(body=objects(VALUES), cut=st.integers(0), window_bytes=st.integers(2, 40))
def test_a_truncated_object_requests_no_stream(body: str, cut: int, window_bytes: int) -> None:
    raw = body.encode()

    assert not asks_for_stream(raw[: cut % len(raw)], window_bytes=window_bytes)


PIECES = st.sampled_from(
    [*(b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"\0", b"\xff", b"\\u"),
     *(b"true", b'"stream"', b'"a":1,', b'{"stream":true}')]
)  # fmt: skip


@given(pieces=st.lists(PIECES | st.binary(max_size=3), max_size=30), window=st.integers(2, 20))
def test_the_search_ends_for_all_bytes_and_finds_all_that_json_finds(
    pieces: list[bytes], window: int
) -> None:
    body = b"".join(pieces)
    does = asks_for_stream(body, window_bytes=window)
    try:
        said = by_json(body.decode())
    except (ValueError, RecursionError):
        return
    assert does == said


# What it costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filling",
    [b'"a":1,', b'"stream":true,', b'"":[[]],', b'"\\"":"",', b'"a":{"b":{}},'],
)
def test_one_turn_ends_when_its_effort_is_spent_for_every_body_size(filling: bytes) -> None:
    body = b"{" + filling * 20_000 + b'"stream":true}'
    search = StreamSearch()
    turns = 0
    while search.answer is None:
        assert search.advance(body, 10_000) < 10_000 + WINDOW_BYTES + STEP_EFFORT
        turns += 1

    assert search.answer
    assert turns >= len(body) // (10_000 + WINDOW_BYTES + STEP_EFFORT)


@pytest.mark.parametrize(
    ("opening", "filling"),
    [
        (b'{"a":"', b"x"),
        (b'{"a":"', b'\\"'),
        (b'{"a":["', b"x"),
        (b'{"a":[', b"1,"),
        (b'{"a":', b"["),
        (b"{", b" "),
        (b'{"', b"x"),
        (b'{"a":', b"1"),
        (b'{"a":[', b'{"role":"user","content":"Hello \\n world"},'),
    ],
)
def test_long_tokens_and_usual_bodies_cost_little_more_than_their_bytes(
    opening: bytes, filling: bytes
) -> None:
    body = opening + filling * (400_000 // len(filling))
    search = StreamSearch()
    spent = 0
    while search.answer is None:
        spent += search.advance(body, STEP_EFFORT)

    assert spent < 1.5 * len(body)
