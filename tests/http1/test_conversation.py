from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1 import conversation
from llama_gguf.http1.conversation import (
    FIRST_WINDOW_BYTES,
    MAX_TOKENS,
    PROMPT_BYTES,
    WINDOW_BYTES,
    Form,
    beginning,
    beginning_of_prompt,
    cache_key,
)

CHATS = (Form.CHAT, Form.MESSAGES, Form.RESPONSES)
MEMBERS = {Form.CHAT: "messages", Form.MESSAGES: "messages", Form.RESPONSES: "input"}
ASIDES = {Form.MESSAGES: "system", Form.RESPONSES: "instructions"}
EPHEMERAL = {"type": "ephemeral"}

# Conversations, as several clients send them ------------------------------------------------------

TEXTS = st.text(max_size=12) | st.sampled_from(['"messages":[', "\\", '\\"', "é", "\ud83d", "}]"])
IMAGES = st.sampled_from(["data:image/png;base64,iVBORw0KGgo=", "data:image/png;base64,AAAA"])


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


PARTS = TEXTS.map(lambda text: {"type": "text", "text": text}) | IMAGES.map(image)
PAIRS = st.lists(TEXTS, min_size=2, max_size=2, unique=True).map(
    lambda texts: [[image("data:"), {"type": "text", "text": text}] for text in texts]
) | st.lists(TEXTS, min_size=2, max_size=2, unique=True)
CONTENTS = TEXTS | st.lists(PARTS, max_size=3)


@st.composite
def writers(draw: st.DrawFn) -> Any:
    """How a client writes JSON."""
    pad = draw(st.sampled_from([",", ", ", ", \n "]))
    colon = draw(st.sampled_from([":", ": "]))
    ascii_only = draw(st.booleans())

    def write(value: Any) -> bytes:
        text = json.dumps(value, separators=(pad, colon), ensure_ascii=ascii_only)
        return text.encode("utf-8", "surrogatepass")

    return write


OTHERS = st.dictionaries(
    st.sampled_from(["model", "stream", "max_tokens", "tools", "metadata"]),
    st.sampled_from([1, True, "messages", {"messages": "x", "input": {}}, [{"a": [{}]}]]),
)


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What follows the first message of the user."""
    texts = draw(st.lists(st.tuples(CONTENTS, CONTENTS), max_size=3))
    return [
        message
        for reply, question in texts
        for message in (
            {"role": "assistant", "content": reply},
            {"role": "user", "content": question},
        )
    ]


def reordered(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    return {name: value[name] for name in draw(st.permutations(list(value)))}


def body_of(
    draw: st.DrawFn,
    form: Form,
    system: str | None,
    first: Any,
    *,
    write: Any,
) -> bytes:
    """A request of a conversation: the same beginning, and anything else."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}, *draw(turns())]
    members: dict[str, Any] = draw(OTHERS)
    if system is not None and form in ASIDES:
        members[ASIDES[form]] = system
    elif system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if draw(st.booleans()):
        cached = messages[-1]
        if isinstance(cached["content"], str):
            text = cached["content"]
            cached["content"] = [{"type": "text", "text": text, "cache_control": EPHEMERAL}]
    members[MEMBERS[form]] = [reordered(draw, message) for message in messages]
    body: bytes = write(reordered(draw, members))
    return body


@given(
    data=st.data(),
    form=st.sampled_from(CHATS),
    system=st.none() | TEXTS,
    first=CONTENTS,
    write=writers(),
)
def test_two_requests_of_a_conversation_have_the_same_beginning(
    data: st.DataObject, form: Form, system: str | None, first: Any, write: Any
) -> None:
    one, other = (
        beginning(form, data.draw(st.composite(body_of)(form, system, first, write=write)))
        for _ in range(2)
    )

    assert one is not None
    assert one == other


@given(
    data=st.data(),
    form=st.sampled_from(CHATS),
    system=st.none() | TEXTS,
    contents=PAIRS,
    write=writers(),
)
def test_conversations_with_different_first_messages_have_different_beginnings(
    data: st.DataObject,
    form: Form,
    system: str | None,
    contents: list[Any],
    write: Any,
) -> None:
    one, other = (
        beginning(form, data.draw(st.composite(body_of)(form, system, content, write=write)))
        for content in contents
    )

    assert one != other


@pytest.mark.parametrize("form", CHATS)
def test_conversations_with_different_system_prompts_or_images_differ(form: Form) -> None:
    def body(system: str, url: str) -> bytes:
        messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, image(url)]}]
        if form in ASIDES:
            return json.dumps({ASIDES[form]: system, MEMBERS[form]: messages}).encode()
        first = {"role": "system", "content": system}
        return json.dumps({MEMBERS[form]: [first, *messages]}).encode()

    found = {beginning(form, body(s, u)) for s in ("Be brief.", "Be kind.") for u in ("a", "b")}

    assert len(found) == 4


def test_a_text_and_the_same_text_as_a_part_are_one_conversation() -> None:
    part = {"type": "text", "text": "Hello", "cache_control": EPHEMERAL}
    bodies = [
        json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
        for content in ("Hello", [part])
    ]

    assert beginning(Form.CHAT, bodies[0]) == beginning(Form.CHAT, bodies[1]) == b"Hello"


def test_input_may_be_a_string() -> None:
    assert beginning(Form.RESPONSES, b'{"input":"Hi","instructions":"Be brief."}') == (
        b"Be brief.\0Hi"
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"messages":1}', b'{"messages" :{}}', b'{"m":"messages"}', b"\xff" * 9],
)
def test_a_body_without_messages_has_no_beginning(body: bytes) -> None:
    for form in CHATS:
        assert beginning(form, body) is None


# Long and hostile bodies --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [FIRST_WINDOW_BYTES, 3 * FIRST_WINDOW_BYTES, WINDOW_BYTES])
def test_with_a_long_system_prompt_the_first_message_counts_as_far_as_bodies_are_searched(
    size: int,
) -> None:
    def body(first: str, *others: str) -> bytes:
        messages = [{"role": "system", "content": "Be\n" + "x" * (size - 500)}]
        messages += [{"role": "user", "content": text} for text in (first, *others)]
        return json.dumps({"messages": messages}).encode()

    assert beginning(Form.CHAT, body("a")) == beginning(Form.CHAT, body("a", "b"))
    assert beginning(Form.CHAT, body("a")) != beginning(Form.CHAT, body("b"))


@pytest.mark.parametrize(
    "first",
    ["x" * 2 * WINDOW_BYTES, "\n" * WINDOW_BYTES, "x" * (FIRST_WINDOW_BYTES + 9), "\n," * 4000],
)
def test_the_beginning_of_a_long_first_message_stays_the_same(first: str) -> None:
    messages = [{"role": "user", "content": first}]
    one = json.dumps({"messages": messages}).encode()
    messages.append({"role": "assistant", "content": "y" * 999})
    other = json.dumps({"messages": messages, "stream": True}).encode()

    assert beginning(Form.CHAT, one) == beginning(Form.CHAT, other)


@pytest.mark.parametrize(
    "filling", [b"{},", b"1,", b"[", b'"\\n",', b"[],", b'{"role":', b'"', b"\\", b'"messages":']
)
def test_hostile_bodies_are_parsed_only_as_far_as_it_is_cheap(
    filling: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def scan(text: str, at: int) -> tuple[Any, int]:
        if not texts or texts[-1] != text:
            texts.append(text)
        return parse(text, at)

    parse = conversation._SCAN
    monkeypatch.setattr(conversation, "_SCAN", scan)
    body = b'{"messages":[' + filling * (1_000_000 // len(filling))

    for form in CHATS:
        found = beginning(form, body)
        assert found is None or len(found) <= WINDOW_BYTES + 1

    assert all(len(text) <= WINDOW_BYTES for text in texts)
    for text in texts:
        assert len(text) <= FIRST_WINDOW_BYTES or sum(map(text.count, "{[,\\")) <= MAX_TOKENS


@given(body=st.binary(max_size=60) | st.text('{}[]":,\\ messagrolu', max_size=60).map(str.encode))
def test_any_bytes_are_read_without_an_error(body: bytes) -> None:
    for prefix in (b"", b'{"messages":', b'{"messages":[{"role":"user","content":'):
        for form in CHATS:
            beginning(form, bytearray(prefix + body))
    beginning_of_prompt(b'{"prompt":' + body)
    cache_key(b'{"prompt_cache_key":' + body)


# Plain prompts ------------------------------------------------------------------------------------


@given(text=st.text(max_size=40) | st.text('\\"', max_size=9), write=writers())
def test_a_prompt_is_found_as_it_is_written(text: str, write: Any) -> None:
    written: bytes = write(text)

    assert (
        beginning_of_prompt(write({"model": "m", "prompt": text, "n": "prompt"})) == (written[1:-1])
    )


def test_of_a_long_prompt_the_first_kib_counts() -> None:
    body = json.dumps({"prompt": "\\" * 5000}).encode()

    assert beginning_of_prompt(body) == b"\\" * PROMPT_BYTES


def test_prompts_may_be_tokens() -> None:
    assert beginning_of_prompt(b'{"prompt":[1,2,3],"n":1}') == b"1,2,3"


# prompt_cache_key ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"prompt_cache_key":"abc"}', b"abc"),
        (b'{"a":1, "prompt_cache_key" :\n"a\\"c"}', b'a\\"c'),
        (b'{"a":"' + b"x" * 500_000 + b'","prompt_cache_key":"abc"}', b"abc"),
        (b'{"prompt_cache_key":"abc","a":"' + b"x" * 500_000 + b'"}', b"abc"),
        (b'{"prompt_cache_key":""}', None),
        (b'{"prompt_cache_key":null}', None),
        (b'{"prompt_cache_key":"' + b"x" * 9999 + b'"}', None),
        (b'{"a":"prompt_cache_key"}', None),
        (b'{"a":"\\"prompt_cache_key\\":\\"abc\\""}', None),
        (b'{"prompt_cache_key', None),
        (b'{"prompt_cache_key"', None),
        (b"{}", None),
    ],
)
def test_the_cache_key_of_a_body_is_found_at_its_beginning_and_its_end(
    body: bytes, found: bytes | None
) -> None:
    assert cache_key(body) == found
    assert cache_key(bytearray(body)) == found
