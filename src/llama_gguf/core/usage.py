"""What an answer tells of itself: its tokens, and how long the engine took for them.

An answer is never parsed for this. Its first and its last bytes are kept as they pass by, and are
looked at when it is over:

1. ``usage`` at the end: OpenAI's and Anthropic's whole answers, streams with ``include_usage``.
2. ``timings`` at the end: llama-server's own, in the last event of its streams.
3. ``usage`` at the beginning: embeddings and rankings, whose long part follows; and Anthropic's
   streams, which tell the prompt's tokens first and the answer's last.

Text of the model's or of a client's cannot pass for these: within a JSON string each quote has a
backslash before it, so ``"usage":`` is not found there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

OPENING_BYTES: Final = 1024
"""Of an answer's beginning, what is looked at."""
ENDING_BYTES: Final = 4096
"""Of its end. Behind the last object that tells, there is hardly more than ``[DONE]``."""
_OBJECT_BYTES: Final = 640
_BEHIND_ALL_BYTES: Final = 4
"""Of a whole answer, behind its last object: a brace, and white space."""

# A number is one only with what ends it: one that is cut by the framing of a chunk is none.
_NUMBER: Final = re.compile(
    rb'"([a-z_]{1,32})":\s{0,2}([0-9]{1,15}(?:\.[0-9]{1,18})?)(?=\s{0,2}[,}])'
)
# What nearly every answer has, llama-server's own and the barest of OpenAI's: all else costs many
# times as much to read.
_TIMINGS: Final = re.compile(
    rb'"timings":{"cache_n":([0-9]{1,15}),"prompt_n":([0-9]{1,15}),'
    rb'"prompt_ms":[^,]{1,40},[^,]{1,60},[^,]{1,60},'
    rb'"predicted_n":([0-9]{1,15}),"predicted_ms":([0-9]{1,15}(?:\.[0-9]{1,18})?),'
)
_OPENAI: Final = re.compile(
    rb'"usage":\s?{"(prompt|completion)_tokens":\s?([0-9]{1,15}),'
    rb'\s?"(?:prompt|completion)_tokens":\s?([0-9]{1,15}),\s?"total_tokens":\s?[0-9]{1,15}}'
)
_TELLS_PROMPT: Final = frozenset([b"prompt_tokens", b"input_tokens", b"prompt_n"])

Numbers = Mapping[bytes, bytes]


class Usage(NamedTuple):
    """Tokens of one answer; None where it did not tell."""

    prompt: int | None
    """Those of the prompt, with those that were ``cached``."""
    completion: int | None
    cached: int | None
    generating: float | None = None
    """Seconds that the engine took for ``completion``."""


def read(opening: bytes, ending: bytes) -> Usage | None:
    """What the answer that begins and ends like this tells; None when it tells nothing.

    Args:
        opening: the first bytes of the body; may be empty where *ending* is all of it.
        ending: the last bytes.
    """
    tail = ending[-ENDING_BYTES:]
    # From the end, where it is, and since that is three times as fast as forwards.
    usage_at = tail.rfind(b'"usage":')
    openai = _OPENAI.match(tail, usage_at) if usage_at >= 0 else None
    if openai and openai.end() + _BEHIND_ALL_BYTES >= len(tail):
        return _of_openai(*openai.groups())  # nothing else can follow
    at = tail.rfind(b'"timings":')
    if at >= 0:
        timings = _TIMINGS.match(tail, at)
        if timings:
            return _of_timings(*timings.groups())
    if openai:
        return _of_openai(*openai.groups())
    head = (opening or ending)[:OPENING_BYTES]
    if at < 0 and usage_at < 0 and (head is ending or head.rfind(b'"usage":') < 0):
        return None
    told = _numbers(tail, at)  # 2
    told |= _numbers(tail, usage_at)  # 1
    if told.keys().isdisjoint(_TELLS_PROMPT):
        told = _numbers(head, head.find(b'"usage":')) | told  # 3
    usage = Usage(_prompt(told), _completion(told), _cached(told), _generating(told))
    return None if usage.prompt is None and usage.completion is None else usage


def _of_timings(cache_n: bytes, prompt_n: bytes, predicted_n: bytes, ms: bytes) -> Usage:
    cached = int(cache_n)
    return Usage(cached + int(prompt_n), int(predicted_n), cached, float(ms) / 1000)


def _of_openai(first: bytes, count: bytes, other: bytes) -> Usage:
    prompt, completion = (count, other) if first == b"prompt" else (other, count)
    return Usage(int(prompt), int(completion) or None, None)


def _numbers(data: bytes, at: int) -> dict[bytes, bytes]:
    """The numbers by name in the object that begins at *at*; none when that is -1."""
    return {} if at < 0 else dict(_NUMBER.findall(data[at : at + _OBJECT_BYTES]))


def _count(told: Numbers, name: bytes) -> int | None:
    digits = told.get(name, b"")
    return int(digits) if digits.isdigit() else None


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _prompt(told: Numbers) -> int | None:
    if b"prompt_tokens" in told:
        return _count(told, b"prompt_tokens")
    if b"input_tokens" in told:
        # Anthropic counts what was cached apart; OpenAI's responses, by the same name, do not.
        apart = (b"cache_read_input_tokens", b"cache_creation_input_tokens")
        return _sum(_count(told, b"input_tokens"), *(_count(told, name) for name in apart))
    return _sum(_count(told, b"prompt_n"), _count(told, b"cache_n"))


def _completion(told: Numbers) -> int | None:
    names = (b"completion_tokens", b"output_tokens", b"predicted_n")
    # 0 is what Anthropic's streams begin with: those that break off have not told.
    return next((_count(told, name) for name in names if name in told), None) or None


def _cached(told: Numbers) -> int | None:
    names = (b"cached_tokens", b"cache_read_input_tokens", b"cache_n")
    return next((_count(told, name) for name in names if name in told), None)


def _generating(told: Numbers) -> float | None:
    milliseconds = told.get(b"predicted_ms")
    return float(milliseconds) / 1000 if milliseconds and _completion(told) else None
