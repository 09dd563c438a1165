"""Finds what is the same in all requests of a conversation, and in few others.

1. The member ``prompt_cache_key`` of the body.
2. The beginning of the conversation: the system prompt and the first message of the user. Messages
   are compared by their text, since clients move other members, such as ``cache_control``, from
   one message to another between requests. A plain prompt grows at its end: its first KiB.

Nothing depends on it but the engine that a request goes to. So a body is only searched where that
is cheap, and only as far as WINDOW_BYTES; where it is invalid, or longer, its bytes are compared.
A name is also found in a nested object. In a string it is not, since its quotes would be escaped.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from json import JSONDecoder
from json.scanner import make_scanner
from typing import Any, Final, cast

WINDOW_BYTES: Final = 64 * 1024
FIRST_WINDOW_BYTES: Final = 4096
"""Where the beginning of most conversations ends."""
PROMPT_BYTES: Final = 1024
PROMPT_STEP_BYTES: Final = 64
"""A prompt that is shorter than PROMPT_BYTES may be the beginning of another, in these steps."""
MAX_TOKENS: Final = 6000
"""Of a window that is parsed: a token costs as much as 20 bytes, or more."""

Text = bytes | bytearray


class Form(enum.IntEnum):
    """Where a body has its conversation."""

    CHAT = 0  # in `messages`, those of the system among them
    MESSAGES = 1  # in `system` and `messages`
    RESPONSES = 2  # in `instructions` and `input`
    PROMPT = 3


FORMS: Final = {
    "/v1/chat/completions": Form.CHAT,
    "/chat/completions": Form.CHAT,
    "/v1/messages": Form.MESSAGES,
    "/v1/responses": Form.RESPONSES,
    "/responses": Form.RESPONSES,
    "/v1/completions": Form.PROMPT,
    "/completions": Form.PROMPT,
    "/completion": Form.PROMPT,
}
"""By the label of a route; requests to others belong to no conversation."""

_CACHE_KEY: Final = b'"prompt_cache_key"'
_MESSAGES: Final = b'"messages"'
_SYSTEM: Final = b'"system"'
_INSTRUCTIONS: Final = b'"instructions"'
_INPUT: Final = b'"input"'
_PROMPT: Final = b'"prompt"'
_QUOTE: Final = ord('"')
_BRACKET: Final = ord("[")
_BACKSLASH: Final = ord("\\")
# Without a class of characters, which takes three times as long, nor a possessive group, which
# does not match before Python 3.11.5.
_USUAL_STRING: Final = rb'"([^"]*+(?:(?<=\\)"[^"]*+)*)"'
# A chat, as the JSON modules of JavaScript and Python write it.
_USUAL: Final = re.compile(
    rb'"messages": ?\[(?:\{"role": ?"(?:system|developer)", ?"content": ?%b\}, ?)?'
    rb'\{"role": ?"user", ?"content": ?%b' % (_USUAL_STRING, _USUAL_STRING)
)
_COLON: Final = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_SHORT_STRING: Final = re.compile(rb'"((?:[^"\\]|\\.){1,512})"')
_BETWEEN: Final = re.compile(r"[ \t\r\n]*+,?[ \t\r\n]*+")
_MAX_OTHERS: Final = 16
"""Members of the same name that cannot be meant, before the search ends."""

_SCAN: Final[Callable[[str, int], tuple[Any, int]]] = make_scanner(cast("Any", JSONDecoder()))


def cache_key(body: Text) -> bytes | None:
    """The value of ``prompt_cache_key``; None if there is none."""
    at = body.find(_CACHE_KEY, 0, WINDOW_BYTES)
    if at < 0 and len(body) > WINDOW_BYTES:
        at = body.find(_CACHE_KEY, max(WINDOW_BYTES, len(body) - WINDOW_BYTES))
    if at < 0:
        return None
    colon = _COLON.match(body, at + len(_CACHE_KEY))
    value = None if colon is None else _SHORT_STRING.match(body, colon.end())
    return None if value is None else bytes(value[1])


def beginning(form: Form, body: Text) -> bytes | None:
    """The beginning of a conversation that is no plain prompt; None if there is none."""
    if form is Form.CHAT:
        return _usual_messages(body) or _messages(body)
    if form is Form.RESPONSES:
        aside, first = _INSTRUCTIONS, _read_at(body, _value(body, _INPUT), _first_turn)
    else:
        aside, first = _SYSTEM, _messages(body)
    if first is None:
        return None
    return (_read_at(body, _value(body, aside), _one_value) or b"") + b"\0" + first


def beginning_of_prompt(body: Text) -> bytes:
    """The first KiB of a plain prompt, as it is written; empty if there is none."""
    at = _value(body, _PROMPT)
    if at < 0:
        return b""
    at += 1
    if body[at - 1] == _BRACKET:  # tokens, or several prompts
        return bytes(body[at : at + PROMPT_BYTES].partition(b"]")[0])
    end = _end_of_string(body, at, at + PROMPT_BYTES)
    return bytes(body[at : end if end >= 0 else at + PROMPT_BYTES])


def _messages(body: Text) -> bytes | None:
    return _read_at(body, _value(body, _MESSAGES, b"["), _first_turn)


def _usual_messages(body: Text) -> bytes | None:
    """What ``_read_at`` would return; None if the conversation does not begin in the usual way."""
    at = body.find(_MESSAGES)
    found = _USUAL.match(body, at, at + 2 * WINDOW_BYTES)
    if found is None:
        return None
    system, first = found.groups()
    try:
        return (
            _unescaped(first) if system is None else _unescaped(system) + b"\0" + _unescaped(first)
        )
    except ValueError:
        return None


def _unescaped(text: bytes) -> bytes:
    """The *text* of a JSON string. May raise ValueError."""
    if _BACKSLASH not in text:
        return text
    found: str = _SCAN(f'"{text.decode("utf-8", "replace")}"', 0)[0]
    return found.encode("utf-8", "surrogatepass")


def _value(body: Text, name: bytes, first: bytes = b'"[') -> int:
    """Where the value of the first member *name* begins; -1 if there is none.

    Args:
        body: of the request.
        name: in its quotes.
        first: bytes that the value may begin with; other members of this name are not meant.
    """
    at = 0
    for _ in range(_MAX_OTHERS):
        at = body.find(name, at, 4 * WINDOW_BYTES)
        if at < 0:
            break
        at += len(name)
        colon = _COLON.match(body, at)
        if colon is not None and (at := colon.end()) < len(body) and body[at] in first:
            return at
    return -1


def _end_of_string(body: Text, start: int, limit: int) -> int:
    """Where the quote is that ends the string which begins before *start*; -1 if it is longer."""
    at = body.find(_QUOTE, start, limit)
    while at >= 0:
        before = at - 1
        while body[before] == _BACKSLASH:
            before -= 1
        if (at - before) % 2:
            return at
        at = body.find(_QUOTE, at + 1, limit)
    return -1


def _read_at(body: Text, start: int, read: Callable[[str], list[str]]) -> bytes | None:
    """What *read* finds in the value at *start*; the bytes there if it cannot.

    The bytes are as many as certainly belong to the beginning, so that they are the same in the
    next request.
    """
    if start < 0:
        return None
    known = FIRST_WINDOW_BYTES
    for window in (FIRST_WINDOW_BYTES, WINDOW_BYTES):
        text = body[start : start + window].decode("utf-8", "replace")
        if window > FIRST_WINDOW_BYTES and _tokens(text) > MAX_TOKENS:
            break
        try:
            return "\0".join(read(text)).encode("utf-8", "surrogatepass")
        except (ValueError, StopIteration, RecursionError):
            known = window
        if start + window >= len(body):
            break  # it is invalid
    return bytes(body[start : start + known])


def _tokens(text: str) -> int:
    return sum([text.count(char) for char in "{[,\\"])


def _one_value(text: str) -> list[str]:
    return [_text_of(_SCAN(text, 0)[0])]


def _first_turn(text: str) -> list[str]:
    """The texts of a conversation's messages, up to the first of the user.

    Raises:
        ValueError, StopIteration: *text* ends before it.
    """
    if text[0] != "[":
        return _one_value(text)
    texts: list[str] = []
    at = 1
    while True:
        between = _BETWEEN.match(text, at)
        assert between is not None
        at = between.end()
        if text[at : at + 1] == "]":
            return texts
        message, at = _SCAN(text, at)
        if isinstance(message, dict):
            texts.append(_text_of(message.get("content")))
            if message.get("role") == "user":
                return texts


def _text_of(content: object) -> str:
    """Of a message: the same for a string and for a part with this text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join([_text_of_part(part) for part in content])
    return ""


def _text_of_part(part: object) -> str:
    if isinstance(part, dict):
        text = part.get("text")
        if isinstance(text, str):
            return text
        part = {name: value for name, value in part.items() if name != "cache_control"}
    return json.dumps(part, sort_keys=True)
