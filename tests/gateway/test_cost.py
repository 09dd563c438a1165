"""The cost of requests and events, in calls of functions, which no other process affects.

The numbers themselves are not checked: each test compares two in the same run. ``make cost`` has
ceilings for instructions and system calls; it needs valgrind and strace.
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
from llama_gguf.telemetry.recorder import MAX_BATCH
from tests.access.test_attributes import FULL
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, chunk, event, request

RESPONSES: Final = Path(__file__).parents[1] / "telemetry" / "answers"
SOURCE: Final = str(Path(llama_gguf.__file__).parent)
TRANSPORTS: Final = str(Path(SOURCE, "net"))
"""Not counted, since those of the tests are fakes."""

pytestmark = pytest.mark.skipif(
    not client_connection.__file__.endswith(".py"),
    reason="a compiled function calls without a trace",
)


def calls_of(work: Callable[[], None]) -> int:
    """The number of calls of our functions, and of the functions that these call directly."""
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


def calls_per_request(client: FakeClient, *, new_heads: bool = False) -> float:
    """Its metrics and its line in the access log included."""

    def work() -> None:
        for n in range(MAX_BATCH):  # bodies differ in length, as those of real requests do
            field = (f"X-N: {n}",) if new_heads else ()
            target = "/v1/chat/completions"
            client.send(request("POST", target, *field, body=b"x" * (n + 1)))

    work()  # once, so that nothing is new in the measured run, except new heads
    return calls_of(work) / MAX_BATCH


@pytest.fixture
def client(rig: Rig) -> FakeClient:
    rig.respond_with(OK)
    return rig.send_request()


def test_a_request_with_the_head_of_the_last_one_costs_less_than_half_of_another(
    client: FakeClient,
) -> None:
    assert calls_per_request(client) < calls_per_request(client, new_heads=True) / 2


@pytest.mark.parametrize("new_heads", [False, True])
def test_a_request_costs_the_same_with_ten_thousand_keys_that_have_all_limits(
    new_heads: bool, new_rig: NewRig
) -> None:
    def cost(others: int) -> float:
        lines = (f"key-{n}:sk-of-another-{n:06}:60 {FULL}\n" for n in range(others))
        rig = new_rig(keys=f"alice:{KEY}:1000\n{''.join(lines)}")
        rig.respond_with(OK)
        return calls_per_request(rig.send_request(), new_heads=new_heads)

    assert cost(10_000) == cost(0)


def test_scope_and_weight_cost_nothing_once_a_head_is_known(new_rig: NewRig) -> None:
    def cost(words: str) -> float:
        rig = new_rig(keys=f"alice:{KEY} {words}\nbob:{OTHER_KEY}\n")
        rig.respond_with(OK)
        return calls_per_request(rig.send_request())

    limits = "routes=chat from=203.0.113.0/24 weight=4 priority=low"
    assert cost(limits) == cost("")


def test_a_new_connection_with_a_known_head_costs_less_than_half_of_a_new_head(
    rig: Rig, client: FakeClient
) -> None:
    clients = [rig.client() for _ in range(MAX_BATCH)]

    def work() -> None:
        for other in clients:
            other.send(request(body=b"{}"))

    assert calls_of(work) / MAX_BATCH < calls_per_request(client, new_heads=True) / 2
    assert rig.records[-1].key_id == "alice"


def test_the_tokens_in_a_response_add_less_than_a_fifth(rig: Rig, client: FakeClient) -> None:
    without = calls_per_request(client)
    body = RESPONSES.joinpath("chat.http").read_bytes().partition(b"\r\n\r\n")[2]
    rig.respond_with(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    assert calls_per_request(client) < 1.2 * without
    assert rig.metrics.tokens["alice", "completion"] > 0


def test_an_event_costs_less_than_an_eighth_of_a_request(rig: Rig, client: FakeClient) -> None:
    rig.respond = None
    rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))
    engine = rig.upstream.transport
    events = [chunk(b'data: {"token":"%d"}\n\n' % 10**n) for n in range(1, 65)]

    def work() -> None:
        for data in events:
            engine.receive(data)

    work()  # once, since the size line of each length is computed once

    per_event = calls_of(work) / len(events)
    rig.upstream.send(LAST_CHUNK)
    rig.respond_with(OK)
    assert per_event < calls_per_request(client) / 8


def test_no_request_opens_another_connection_to_the_engine(rig: Rig, client: FakeClient) -> None:
    calls_per_request(client)

    assert len(rig.upstreams) == 1
