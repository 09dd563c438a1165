"""Deaths of the engine under ``serve``: many requests at once, hangs, and the end of ``serve``."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.clients import Wire
from tests.support.gateways import logged
from tests.support.messages import chunk, code_of, request
from tests.support.processes import until
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes

STREAM: Final = b'{"stream": true}'
STREAMS: Final = (CHAT, "/v1/completions", "/v1/messages", "/v1/responses")
TARGETS: Final = (*STREAMS, "/v1/embeddings")
FINAL: Final = {
    CHAT: b"data: [DONE]\n\n",
    "/v1/completions": b"data: [DONE]\n\n",
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/v1/responses": b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
}
ROWS: Final = (
    *((target, phase, b'{"n":1}') for target in TARGETS for phase in ("sent", "head", "mid-event")),
    *(
        (target, phase, STREAM)
        for target in STREAMS
        for phase in ("sent", "head", "comment", "mid-event", "event", "last")
    ),
)
BEGINS: Final = ("mid-event", "event", "last")
"""Phases in which the client has a part of the response."""


@pytest.fixture
def wires() -> Iterator[ExitStack]:
    with ExitStack() as wires:
        yield wires


class Held:
    """Requests that the engine holds until ``release``."""

    def __init__(self, serve: Serve, wires: ExitStack) -> None:
        self._serve = serve
        self._wires = wires
        self._until = serve.folder / "until"
        self._held = serve.folder / "until.held"
        self._sent = 0

    def send(self, phase: str, body: bytes, target: str = CHAT) -> Wire:
        wire = self._wires.enter_context(Wire(("127.0.0.1", self._serve.port)))
        fields = (f"x-hold: {phase}", f"x-until: {self._until}")
        wire.send(request("POST", target, *fields, body=body))
        self._sent += 1
        return wire

    def until_all_are(self) -> None:
        """Wait until the engine holds all of them; again those that were sent again."""
        until(lambda: self._held.exists() and len(self._lines()) >= self._sent)

    def _lines(self) -> list[str]:
        return self._held.read_text().splitlines()

    def release(self) -> None:
        self._until.touch()


@pytest.fixture
def held(serve: Serve, wires: ExitStack) -> Held:
    return Held(serve, wires)


def start(serve: Serve, **settings: str) -> Path:
    """Start it with as many slots as there are rows; returns the file of what the engine saw."""
    seen = serve.folder / "seen"
    usual = {"MAX_CONCURRENT_REQUESTS": "64", "MAX_REQUESTS_PER_MINUTE": "1000"}
    serve.start_ready(engine=quoted("--seen", str(seen)), **usual, **settings)
    return seen


def test_of_all_requests_at_once_none_is_lost_that_had_not_begun(serve: Serve, held: Held) -> None:
    seen = start(serve)
    wires = [held.send(phase, body, target) for target, phase, body in ROWS]
    held.until_all_are()
    for wire, (target, phase, body) in zip(wires, ROWS, strict=True):
        parts = {"head": b"\r\n\r\n", "comment": chunk(b":\n\n"), "event": b"5}}\n\n\r\n"}
        parts |= {"mid-event": b'{"n":0,"us', "last": b"\n\n\r\n"}
        part = parts.get(phase, b"") if body is STREAM else b'{"ec' * (phase == "mid-event")
        if target == "/v1/responses" and phase not in BEGINS:
            part = b""  # its head is held back until the first event
        wire.buffer = wire.read_until(part) + wire.buffer if part else b""
    os.kill(serve.engine_pid, signal.SIGKILL)
    held.release()

    for wire, (target, phase, body) in zip(wires, ROWS, strict=True):
        row = f"{target} {phase} {body!r}"
        if phase == "mid-event":
            assert wire.was_reset(), row
            assert b'"error"' not in wire.buffer, row
            continue
        response = wire.response()
        assert response.status == 200, row
        assert response.is_whole == (phase != "event"), row
        if phase == "event":
            assert b'"error": {' in response.chunks[-1], row
            assert FINAL[target] not in response.body, row
        elif body is STREAM:
            assert response.body.endswith(FINAL[target]), row
            assert response.body.count(b'"n":0') == 1, row
        else:
            assert response.json == {"echo": '{"n":1}'}, row

    lines = until(lambda: found if len(found := logged(serve.data / "logs")) >= len(ROWS) else [])
    again = sum(phase not in BEGINS for _, phase, _ in ROWS)
    outcomes = Counter((line["outcome"], line.get("replays", "0")) for line in lines)
    cut = sum(phase in ("mid-event", "event") for _, phase, _ in ROWS)
    done = len(ROWS) - again - cut
    assert outcomes == {("done", "1"): again, ("backend_error", "0"): cut, ("done", "0"): done}
    computed = [line for line in seen.read_text().splitlines() if '"POST"' in line]
    assert len(computed) == len(ROWS) + again
    metrics = serve.send_request("/metrics").json
    assert sum(row["value"] for row in metrics["llama_gguf_replays"]) == again
    assert sum(
        row["value"] for row in metrics["llama_gguf_requests"] if row["method"] == "POST"
    ) == len(ROWS)
    usage = serve.send_request("/usage").json["keys"][0]["total"]
    assert usage["requests"] == len(ROWS)


HANGS: Final = {
    "a process that is stopped": {"WATCHDOG_HEALTH": "1"},
    "an engine that computes nothing": {"WATCHDOG_STALL": "1"},
}


@pytest.mark.parametrize("settings", HANGS.values(), ids=HANGS.keys())
def test_a_hang_loses_nothing_either(serve: Serve, held: Held, settings: dict[str, str]) -> None:
    start(serve, **settings)
    wires = [held.send("sent", b"{}"), held.send("head", STREAM), held.send("comment", STREAM)]
    held.until_all_are()
    engine = serve.engine_pid
    if "WATCHDOG_HEALTH" in settings:
        os.kill(engine, signal.SIGSTOP)
    serve.until_printed("It ")
    serve.until(lambda: serve.engine_pid != engine)
    held.release()

    assert [wire.response().is_whole for wire in wires] == [True] * 3


def test_no_engine_comes_once_serve_stops_and_the_client_learns_that(
    serve: Serve, held: Held
) -> None:
    start(serve, DRAIN_TIMEOUT="20")
    wire = held.send("sent", b"{}")
    held.until_all_are()
    serve.signal(signal.SIGTERM)
    serve.until_printed("Draining:")
    os.kill(serve.engine_pid, signal.SIGKILL)

    response = wire.response()
    assert (response.status, code_of(response)) == (503, "backend_unavailable")
    assert serve.wait() == 0


def test_a_request_that_waits_for_its_engine_keeps_serve_from_sleeping(
    serve: Serve, held: Held
) -> None:
    start(serve, IDLE_STOP="1")
    wire = held.send("sent", b"{}")
    held.until_all_are()
    os.kill(serve.engine_pid, signal.SIGKILL)
    held.release()

    assert wire.response().status == 200
