"""Token usage and timings, read from the engine's response.

A response is never parsed for this. Its first and its last bytes are kept as they pass, and are
searched at its end for:

1. ``usage`` at the end: OpenAI's and Anthropic's complete responses, and streams with
   ``include_usage``.
2. ``timings`` at the end: llama-server's own object, in the last event of its streams.
3. ``usage`` at the beginning: embeddings and rankings, whose long part follows; and Anthropic's
   streams, which have the prompt's tokens first and the output's last. llama-server omits the
   first if the first token is only part of a character: then the prompt stays unknown.

Text of the model or of a client cannot be mistaken for these: in a JSON string each quote has a
backslash before it, so that it never contains ``"usage":``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llama_gguf.http1.exchange_record import Usage
from llama_gguf.memo import BoundedMemo

OPENING_BYTES: Final = 1024
"""Kept of a response's beginning."""
ENDING_BYTES: Final = 4096
"""Kept of its end. After the last object of interest there is hardly more than ``[DONE]``."""
_OBJECT_BYTES: Final = 640
_MAX_DIGITS: Final = 15

# The delimiter is required: without it, a number may be cut by the framing of a chunk.
_NUMBER: Final = re.compile(
    rb'"([a-z_]{1,32})":\s{0,2}([0-9]{1,15}(?:\.[0-9]{1,18})?)(?=\s{0,2}[,}])'
)
_PROMPT_NAMES: Final = frozenset([b"prompt_tokens", b"input_tokens", b"prompt_n"])
_TOTAL_NAMES: Final = frozenset([b"total_tokens", b"predicted_n"])
"""With one of these, missing output tokens mean that there are none."""

Numbers = Mapping[bytes, bytes]


def _number(digits: bytes) -> int:
    """The number that *digits* are; -1 for anything else."""
    return int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else -1


_COUNTS: Final = BoundedMemo(_number, max_entries=4096)


def read(opening: bytes, ending: bytes) -> Usage | None:
    """The usage in a response; None if it reports none.

    Args:
        opening: the first bytes of the body; may be empty if *ending* is the complete body.
        ending: the last bytes of the body.
    """
    tail = ending[-ENDING_BYTES:]
    # The usual endings first: all others cost many times as much to read.
    last = tail.rfind(b'":{') + 1
    usage = None
    if last < 9:  # too short for either name
        pass
    elif tail[last - 9 : last] == b'"timings"':
        usage = _of_timings(tail[last : last + _OBJECT_BYTES])
    elif tail[last - 7 : last] == b'"usage"':
        usage = _of_openai(tail[last:])
    if usage is not None:
        return usage
    # From the end, which is three times as fast as forwards.
    at = tail.rfind(b'"timings":')
    usage_at = tail.rfind(b'"usage":')
    head = (opening or ending)[:OPENING_BYTES]
    if at < 0 and usage_at < 0 and (head is ending or head.rfind(b'"usage":') < 0):
        return None
    found = _numbers(tail, at)  # 2
    found |= _numbers(tail, usage_at)  # 1
    if found.keys().isdisjoint(_PROMPT_NAMES):
        found = _numbers(head, head.find(b'"usage":')) | found  # 3
    prompt, completion = _prompt(found), _completion(found)
    if prompt is None and completion is None:
        return None
    is_whole = prompt is not None and (
        completion is not None or not found.keys().isdisjoint(_TOTAL_NAMES)
    )
    generating, prompting = _seconds(found, b"predicted_ms"), _seconds(found, b"prompt_ms")
    if not completion:
        generating = None
    return Usage(
        prompt, completion, _cached(found), generating, prompting=prompting, is_whole=is_whole
    )


# Slices are compared, since `startswith` takes twice as long.
def _of_timings(found: bytes) -> Usage | None:
    """The usage in what follows ``"timings"``; None unless it has llama-server's exact layout."""
    parts = found.split(b",", 7)
    if len(parts) < 8:
        return None
    first, second, third, sixth, seventh = parts[0], parts[1], parts[2], parts[5], parts[6]
    if (
        first[:12] != b':{"cache_n":'
        or second[:11] != b'"prompt_n":'
        or third[:12] != b'"prompt_ms":'
        or sixth[:14] != b'"predicted_n":'
        or seventh[:15] != b'"predicted_ms":'
    ):
        return None
    cached, prompt, completion = _COUNTS[first[12:]], _COUNTS[second[11:]], _COUNTS[sixth[14:]]
    before, behind = third[12:], seventh[15:]
    if cached < 0 or prompt < 0 or completion < 1:
        return None
    if not before.replace(b".", b"", 1).isdigit() or not behind.replace(b".", b"", 1).isdigit():
        return None
    generating, prompting = float(behind) / 1000, float(before) / 1000
    return Usage(cached + prompt, completion, cached, generating, prompting=prompting)


def _of_openai(found: bytes) -> Usage | None:
    """The usage in what follows ``"usage"``; None unless it is OpenAI's object without details."""
    parts = found.split(b",", 3)
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
    """The numbers by name in the object that begins at *at*; empty if *at* is -1."""
    return {} if at < 0 else dict(_NUMBER.findall(data[at : at + _OBJECT_BYTES]))


def _count(found: Numbers, name: bytes) -> int | None:
    digits = found.get(name, b"")
    return int(digits) if digits.isdigit() else None


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _prompt(found: Numbers) -> int | None:
    if b"prompt_tokens" in found:
        return _count(found, b"prompt_tokens")
    if b"input_tokens" in found:
        # Anthropic counts cached tokens separately; OpenAI's Responses API has the same name
        # and does not.
        apart = (b"cache_read_input_tokens", b"cache_creation_input_tokens")
        return _sum(_count(found, b"input_tokens"), *(_count(found, name) for name in apart))
    return _sum(_count(found, b"prompt_n"), _count(found, b"cache_n"))


def _completion(found: Numbers) -> int | None:
    names = (b"completion_tokens", b"output_tokens", b"predicted_n")
    # Anthropic's streams begin with 0: if they break off, the count is unknown.
    return next((_count(found, name) for name in names if name in found), None) or None


def _cached(found: Numbers) -> int | None:
    names = (b"cached_tokens", b"cache_read_input_tokens", b"cache_n")
    return next((_count(found, name) for name in names if name in found), None)


def _seconds(found: Numbers, name: bytes) -> float | None:
    milliseconds = found.get(name)
    return float(milliseconds) / 1000 if milliseconds else None
