"""Token usage and timings, read from the engine's response.

An answer is never parsed for this. Its first and its last bytes are kept as they pass by, and are
looked at when it is over:

1. ``usage`` at the end: OpenAI's and Anthropic's whole answers, streams with ``include_usage``.
2. ``timings`` at the end: llama-server's own, in the last event of its streams.
3. ``usage`` at the beginning: embeddings and rankings, whose long part follows; and Anthropic's
   streams, which tell the prompt's tokens first and the answer's last. llama-server leaves the
   first out where the first token is but a part of a character: then the prompt stays unknown.

Text of the model's or of a client's cannot pass for these: within a JSON string each quote has a
backslash before it, so ``"usage":`` is not found there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llama_gguf.memo import BoundedMemo

OPENING_BYTES: Final = 1024
"""Of an answer's beginning, what is looked at."""
ENDING_BYTES: Final = 4096
"""Of its end. Behind the last object that tells, there is hardly more than ``[DONE]``."""
_OBJECT_BYTES: Final = 640
_MAX_DIGITS: Final = 15

# A number is one only with what ends it: one that is cut by the framing of a chunk is none.
_NUMBER: Final = re.compile(
    rb'"([a-z_]{1,32})":\s{0,2}([0-9]{1,15}(?:\.[0-9]{1,18})?)(?=\s{0,2}[,}])'
)
_TELLS_PROMPT: Final = frozenset([b"prompt_tokens", b"input_tokens", b"prompt_n"])
_TELLS_ALL: Final = frozenset([b"total_tokens", b"predicted_n"])
"""Where these are, no tokens of an answer means that there are none."""

Numbers = Mapping[bytes, bytes]


class Usage:
    """Tokens of one answer; None where it did not tell.

    Args:
        prompt: those of the prompt, with those that were *cached*.
        completion: those of the answer.
        cached: those that the engine did not have to read again.
        generating: seconds that the engine took for *completion*.
        is_whole: whether it told all of its tokens; of an embedding, the prompt's are all.
    """

    __slots__ = ("cached", "completion", "generating", "is_whole", "prompt")

    def __init__(
        self,
        prompt: int | None,
        completion: int | None,
        cached: int | None,
        generating: float | None = None,
        is_whole: bool = True,
    ) -> None:
        self.prompt = prompt
        self.completion = completion
        self.cached = cached
        self.generating = generating
        self.is_whole = is_whole

    def __repr__(self) -> str:
        what = (self.prompt, self.completion, self.cached, self.generating, self.is_whole)
        return f"Usage{what}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


def _number(digits: bytes) -> int:
    """The number that *digits* are; -1 for anything else."""
    return int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else -1


_COUNTS: Final = BoundedMemo(_number, max_entries=4096)


def read(opening: bytes, ending: bytes) -> Usage | None:
    """What the answer that begins and ends like this tells; None when it tells nothing.

    Args:
        opening: the first bytes of the body; may be empty where *ending* is all of it.
        ending: the last bytes.
    """
    tail = ending[-ENDING_BYTES:]
    # What nearly every answer ends with comes first: all else costs many times as much to read.
    last = tail.rfind(b'":{') + 1
    usage = None
    if last < 9:  # no name of ours is before it
        pass
    elif tail[last - 9 : last] == b'"timings"':
        usage = _of_timings(tail[last : last + _OBJECT_BYTES])
    elif tail[last - 7 : last] == b'"usage"':
        usage = _of_openai(tail[last:])
    if usage is not None:
        return usage
    # From the end, since that is three times as fast as forwards.
    at = tail.rfind(b'"timings":')
    usage_at = tail.rfind(b'"usage":')
    head = (opening or ending)[:OPENING_BYTES]
    if at < 0 and usage_at < 0 and (head is ending or head.rfind(b'"usage":') < 0):
        return None
    told = _numbers(tail, at)  # 2
    told |= _numbers(tail, usage_at)  # 1
    if told.keys().isdisjoint(_TELLS_PROMPT):
        told = _numbers(head, head.find(b'"usage":')) | told  # 3
    prompt, completion = _prompt(told), _completion(told)
    if prompt is None and completion is None:
        return None
    is_whole = prompt is not None and (
        completion is not None or not told.keys().isdisjoint(_TELLS_ALL)
    )
    return Usage(prompt, completion, _cached(told), _generating(told), is_whole)


# Slices of the lengths of what they are compared with: to ask `startswith` takes twice as long.
def _of_timings(told: bytes) -> Usage | None:
    """Of what follows ``"timings"``; None when that is not just llama-server's own object."""
    parts = told.split(b",", 7)
    if len(parts) < 8:
        return None
    first, second, sixth, seventh = parts[0], parts[1], parts[5], parts[6]
    if (
        first[:12] != b':{"cache_n":'
        or second[:11] != b'"prompt_n":'
        or sixth[:14] != b'"predicted_n":'
        or seventh[:15] != b'"predicted_ms":'
    ):
        return None
    cached, prompt, completion = _COUNTS[first[12:]], _COUNTS[second[11:]], _COUNTS[sixth[14:]]
    milliseconds = seventh[15:]
    if cached < 0 or prompt < 0 or completion < 1:
        return None
    if not milliseconds.replace(b".", b"", 1).isdigit():
        return None
    return Usage(cached + prompt, completion, cached, float(milliseconds) / 1000)


def _of_openai(told: bytes) -> Usage | None:
    """Of what follows ``"usage"``; None when that is not just the barest of OpenAI's objects."""
    parts = told.split(b",", 3)
    if len(parts) != 3:
        return None
    first, second, third = parts
    if (
        first[:18] != b':{"prompt_tokens":'
        or second[:20] != b'"completion_tokens":'
        or third[:15] != b'"total_tokens":'
    ):
        return None
    prompt, completion = _COUNTS[first[18:]], _COUNTS[second[20:]]
    return Usage(prompt, completion, None) if prompt >= 0 and completion > 0 else None


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
