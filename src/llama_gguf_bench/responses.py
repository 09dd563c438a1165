"""Reads a response as it arrives: tokens, usage, timings, errors. No sockets here.

The number of tokens is the server's ``usage`` or llama.cpp's ``timings``; if it sends neither,
each event with text counts as one token.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import Any, Final

from llama_gguf_bench.records import Record

MAX_WHOLE_BYTES: Final = 64 << 20
CUT: Final = "cut short"
NONSENSE: Final = "not a completion"

_OUTPUT: Final = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")
"""The members of a delta with output: vLLM and others name the reasoning differently."""


class Response:
    """Reads the body of one response into *record*.

    Args:
        record: receives the values.
        streamed: whether server-sent events were requested.
    """

    __slots__ = (
        "_events",
        "_has_begun",
        "_is_finished",
        "_rest",
        "_status",
        "done",
        "record",
        "streamed",
    )

    def __init__(self, record: Record, *, streamed: bool) -> None:
        self.record = record
        self.streamed = streamed
        self.done = False
        self._rest = b""
        self._status = 200
        self._events = 0
        self._has_begun = False
        self._is_finished = False

    def begin(self, status: int) -> None:
        """Called when the head is complete."""
        self._status = status

    def feed(self, data: bytes, now: float) -> None:
        """Process *data*, received at *now*; it may begin and end anywhere in the body."""
        if not self.streamed or self._status != 200:
            self._rest += data[: MAX_WHOLE_BYTES - len(self._rest)]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines and not self._has_begun:  # a byte order mark is no part of the first line
            self._has_begun = True
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        document = _object(payload)
        if document.get("error"):  # some servers send null
            self.record.error = f"error in the stream: {_error_code(document)}"
        if _has_text(document):
            self._events += 1
            self._is_finished = False
            self.record.token(now)
        self._is_finished = self._is_finished or _has_finish_reason(document)
        self._read_counts(document)

    def end(self, now: float) -> None:
        """Called when the body is complete: a stream is if ``[DONE]`` or a finish_reason came."""
        record = self.record
        record.ended = now
        if self._status != 200:
            record.error = f"status {self._status} {_error_code(_object(self._rest))}".rstrip()
        elif not self.streamed:
            self._read_whole()
        elif not (self.done or self._is_finished or record.error):
            record.error = CUT
        self.count_events()

    def count_events(self) -> None:
        """Count events as tokens if the server has sent no token count."""
        if not self.record.counted_by and self._events:
            self.record.counted_by, self.record.output_tokens = "events", self._events

    def _read_whole(self) -> None:
        document = _object(self._rest)
        self._read_counts(document)
        if not document.get("choices"):
            self.record.error = NONSENSE

    def _read_counts(self, document: Mapping[str, Any]) -> None:
        if isinstance(timings := document.get("timings"), dict):
            _note_timings(self.record, timings)
        if isinstance(usage := document.get("usage"), dict) and "completion_tokens" in usage:
            _note_usage(self.record, usage)


def _note_usage(record: Record, usage: Mapping[str, Any]) -> None:
    record.output_tokens = _count(usage["completion_tokens"]) or 0
    record.prompt_tokens = _count(usage.get("prompt_tokens"))
    record.counted_by = "usage"
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    record.cached_tokens = record.cached_tokens if cached is None else cached


def _note_timings(record: Record, timings: Mapping[str, Any]) -> None:
    cached = _count(timings.get("cache_n"))
    if record.counted_by != "usage" and (output := _count(timings.get("predicted_n"))) is not None:
        record.output_tokens, record.counted_by = output, "timings"
        record.prompt_tokens = (_count(timings.get("prompt_n")) or 0) + (cached or 0)
    record.cached_tokens = cached if cached is not None else record.cached_tokens
    record.engine_prompt_seconds = _seconds(timings.get("prompt_ms"))
    record.engine_output_seconds = _seconds(timings.get("predicted_ms"))


def _has_text(document: Mapping[str, Any]) -> bool:
    """Whether this event contains output of the model: text, reasoning or a tool call."""
    choices = document.get("choices")
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if choice.get("text") or any(delta.get(name) for name in _OUTPUT):
            return True
    return False


def _has_finish_reason(document: Mapping[str, Any]) -> bool:
    choices = document.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )


def _object(payload: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(payload)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _error_code(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    if not isinstance(error, dict):
        return ""
    return str(error.get("code") or error.get("type") or "")[:60]


def error_message(body: bytes) -> str:
    """The message in an error's envelope; empty if there is none."""
    error = _object(body).get("error")
    return str(error.get("message") or "") if isinstance(error, dict) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _seconds(milliseconds: object) -> float | None:
    return float(milliseconds) / 1000 if isinstance(milliseconds, int | float) else None
