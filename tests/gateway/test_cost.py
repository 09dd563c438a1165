"""What a request and an event cost, in calls: a number that no clock and no neighbour disturbs.

A change that makes the hot path fatter is seen here; one that makes it leaner lowers the ceiling.
Instructions and system calls, which need other programs, are counted by ``make cost``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

import llama_gguf
from llama_gguf.gateway import client_connection
from llama_gguf.telemetry.recorder import MAX_OPEN
from tests.support.fakes import Rig
from tests.support.messages import OK, STREAM_HEAD, chunk, event, request

ANSWERS: Final = Path(__file__).parents[1] / "telemetry" / "answers"
SOURCE: Final = str(Path(llama_gguf.__file__).parent)
TRANSPORTS: Final = str(Path(SOURCE, "net"))
"""Not counted, since those of the tests are fakes."""
CALLS_PER_REQUEST: Final = 65
"""Of functions, ours and those that ours call. Its share of metrics and log included."""
CALLS_PER_TELLING_ANSWER: Final = 70
"""Where the answer tells its tokens."""
CALLS_PER_EVENT: Final = 6
CALLS_PER_PARSED_HEAD: Final = 158
"""Of a request whose head is not the last one again."""
CALLS_PER_NEWCOMER: Final = 74
"""Of a new connection's first request, which another connection has made just before."""

pytestmark = pytest.mark.skipif(
    not client_connection.__file__.endswith(".py"),
    reason="a compiled function calls without a trace",
)


def calls_of(work: Callable[[], None]) -> int:
    """How many functions of ours are called, and how many are called by them."""
    calls = 0

    def count(frame: FrameType, what: str, _: object) -> None:
        nonlocal calls
        file = frame.f_code.co_filename
        if what in ("call", "c_call") and file.startswith(SOURCE):
            calls += not file.startswith(TRANSPORTS)

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_a_request_like_the_last_one(rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask()

    def work() -> None:
        for n in range(MAX_OPEN):  # lengths differ, as those of people's messages do
            client.send(request(body=b"x" * (n + 1)))

    work()

    assert calls_of(work) / MAX_OPEN <= CALLS_PER_REQUEST
    assert len(rig.upstreams) == 1


def test_an_answer_that_tells_its_tokens(rig: Rig) -> None:
    body = ANSWERS.joinpath("chat.http").read_bytes().partition(b"\r\n\r\n")[2]
    rig.answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    client = rig.ask()

    def work() -> None:
        for n in range(MAX_OPEN):
            client.send(request(body=b"x" * (n + 1)))

    work()

    assert calls_of(work) / MAX_OPEN <= CALLS_PER_TELLING_ANSWER
    assert rig.services.recorder.metrics.tokens["alice", "completion"] > 0


def test_a_request_unlike_the_last_one(rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask()

    def work() -> None:
        for n in range(MAX_OPEN):
            client.send(request("POST", "/v1/chat/completions", f"X-N: {n}", body=b"{}"))

    work()

    assert calls_of(work) / MAX_OPEN <= CALLS_PER_PARSED_HEAD


def test_a_new_connection_that_says_what_others_say(rig: Rig) -> None:
    rig.answer_with(OK)
    rig.ask()
    newcomers = [rig.client() for _ in range(MAX_OPEN)]

    def work() -> None:
        for newcomer in newcomers:
            newcomer.send(request(body=b"{}"))

    assert calls_of(work) / MAX_OPEN <= CALLS_PER_NEWCOMER
    assert rig.records[-1].key_id == "alice"


def test_an_event(rig: Rig) -> None:
    rig.ask()
    rig.upstream.say(STREAM_HEAD, event(1))
    wire = rig.upstream.transport
    events = [chunk(b'data: {"token":"%d"}\n\n' % 10**n) for n in range(1, 65)]

    def work() -> None:
        for data in events:
            wire.receive(data)

    work()

    assert calls_of(work) / len(events) <= CALLS_PER_EVENT
