"""Clients that leave, and what the real engine still computes for them.

The engine's log shows whether it is busy. Not ``/slots``: an engine that gets this request more
often than once per second does not notice that a client left, see docs/adr/0010. Therefore
``/slots`` is requested once, at the end.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.e2e.conftest import Served
from tests.support.clients import Wire
from tests.support.messages import request

_log = logging.getLogger(__name__)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEADLINE_SECONDS = 10.0
"""No response below would end in a hundred times that."""

STREAM = {
    "prompt": "Once",
    "stream": True,
    "n_predict": 1_000_000,
    "ignore_eos": True,
    "cache_prompt": False,
}
WHOLE = {**STREAM, "stream": False}
BOTH = pytest.mark.parametrize("body", [STREAM, WHOLE], ids=["stream", "whole"])

WAYS: Mapping[str, Callable[[Wire], None]] = {
    "close": Wire.close,
    "reset": Wire.reset,
    "half-close": lambda wire: wire.sock.shutdown(socket.SHUT_WR),
}
WAY = pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS.keys())

_BEGUN = re.compile(r"launch_slot_: .*?task (\d+) \| processing task")
_ENDED = re.compile(r"release: .*?task (\d+) \| stop processing")


@pytest.fixture(scope="module", params=["port", "unix socket"])
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, str]:
    """One slot more than the gateway uses; a response ends when its client leaves, or never.

    The engine completes each batch that it has begun, so batches are small.
    """
    settings = {
        "PARALLEL": "3",
        "CTX": "6144",
        "MAX_CONCURRENT_REQUESTS": "2",
        "EXTRA_ARGS": "--context-shift --batch-size 64 --log-verbosity 4",
    }
    if request.param != "port":
        settings["BACKEND_SOCKET"] = str(tmp_path_factory.mktemp("socket") / "llama.sock")
    return settings


class EngineTasks:
    """The engine's tasks, from its log, from now on."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._before = len(served.engine_log)

    def begun(self) -> set[str]:
        return set(_BEGUN.findall(self._new_lines()))

    def running(self) -> set[str]:
        lines = self._new_lines()
        return set(_BEGUN.findall(lines)) - set(_ENDED.findall(lines))

    def _new_lines(self) -> str:
        return self._served.engine_log[self._before :]

    def until_idle(self) -> None:
        """Wait until no response is being generated and no slot is in use."""
        began = time.monotonic()
        while self.running():
            taken = time.monotonic() - began
            assert taken < DEADLINE_SECONDS, f"still running: {self.running()}\n{self._new_lines()}"
            time.sleep(0.02)
        _log.info("idle after %.2f s", time.monotonic() - began)
        _, slots = self._served.get("/slots", backend=True)
        assert not any(slot["is_processing"] for slot in slots)
        self._served.until(lambda: gateway(self._served) == (0, 0), "the gateway's idle slots")


@pytest.fixture
def engine(served: Served) -> Iterator[EngineTasks]:
    served.until_ready()
    engine = EngineTasks(served)
    assert not engine.running()
    yield engine
    engine.until_idle()


def gateway(served: Served) -> tuple[int, int]:
    """The numbers of requests at the engine and in the queue, from the gateway."""
    _, health = served.get("/health")
    return health["slots"]["used"], health["queue"]["length"]


def send_request(
    served: Served, body: Mapping[str, object], *fields: str, backend: bool = False
) -> Wire:
    """Request a completion with *body*, without reading the response."""
    key = served.backend_key if backend else served.key
    raw = json.dumps(body).encode()
    wire = served.wire(backend=backend)
    wire.send(request("POST", "/v1/completions", *fields, key=key, body=raw))
    return wire


def begin(served: Served, engine: EngineTasks, body: Mapping[str, object], *fields: str) -> Wire:
    """As ``send_request``; returns when the engine generates the response."""
    before = engine.begun()
    wire = send_request(served, body, *fields)
    served.until(lambda: engine.begun() > before, "a task at the engine")
    if body["stream"]:
        wire.read_until(b"data: ")
    return wire


@WAY
@BOTH
def test_a_response_whose_client_leaves_is_no_longer_generated(
    served: Served, engine: EngineTasks, body: Mapping[str, object], leave: Callable[[Wire], None]
) -> None:
    with begin(served, engine, body) as wire:
        leave(wire)

        engine.until_idle()


@BOTH
def test_a_prompt_whose_client_leaves_is_no_longer_processed(
    served: Served, engine: EngineTasks, body: Mapping[str, object]
) -> None:
    prompt = "Once upon a time there was a llama. " * 120
    with send_request(served, {**body, "prompt": prompt}) as wire:
        served.until(lambda: len(engine.running()) == 1, "a task at the engine")
        wire.close()

        engine.until_idle()


def test_a_client_that_leaves_a_stream_does_not_affect_another(
    served: Served, engine: EngineTasks
) -> None:
    with begin(served, engine, STREAM) as stays, begin(served, engine, STREAM) as leaves:
        leaves.close()
        served.until(lambda: len(engine.running()) == 1, "an end of the one")

        for _ in range(20):
            stays.read_until(b"data: ")
        stays.close()


def test_an_abandoned_response_ends_at_the_latest_with_the_concurrent_streams(
    served: Served, engine: EngineTasks
) -> None:
    with begin(served, engine, STREAM) as stream, begin(served, engine, WHOLE) as whole:
        whole.close()
        # The engine may not notice while it sends a stream: docs/adr/0010.
        for _ in range(20):
            stream.read_until(b"data: ")
        stream.close()

        engine.until_idle()


@BOTH
def test_a_queued_request_whose_client_leaves_never_reaches_the_engine(
    served: Served, engine: EngineTasks, body: Mapping[str, object]
) -> None:
    with begin(served, engine, STREAM) as one, begin(served, engine, STREAM) as other:
        with send_request(served, body):
            served.until(lambda: gateway(served) == (2, 1), "a place in the queue")
        served.until(lambda: gateway(served) == (2, 0), "a place given back")
        one.close()
        other.close()
        served.until(lambda: gateway(served) == (0, 0), "slots given back")
        # After everything that the gateway has sent.
        with send_request(served, {**WHOLE, "n_predict": 1}, backend=True) as last:
            assert last.response().status == 200

    engine.until_idle()
    assert len(engine.begun()) == 3


# llama-server stores a response, and continues to generate it without a client, if its request
# names a conversation.
CONVERSATION = ("Connection: close", "X-Conversation-Id: conversation")


@pytest.fixture
def conversations(served: Served, engine: EngineTasks) -> Iterator[None]:
    """End the responses that are still generated, for the other tests."""
    assert not engine.running()
    yield
    with served.wire(backend=True) as wire:
        wire.send(request("DELETE", "/v1/stream/conversation", key=served.backend_key))
        assert wire.response().status in (204, 404)  # newer engines: there was none


@pytest.mark.usefixtures("conversations")
def test_no_field_of_a_client_keeps_the_engine_busy_after_it_left(
    served: Served, engine: EngineTasks
) -> None:
    with begin(served, engine, STREAM, *CONVERSATION) as wire:
        wire.close()

        engine.until_idle()


@pytest.mark.usefixtures("conversations")
def test_no_field_of_a_client_ends_the_response_of_another(
    served: Served, engine: EngineTasks
) -> None:
    with (
        begin(served, engine, STREAM, *CONVERSATION) as one,
        begin(served, engine, STREAM, *CONVERSATION) as other,
    ):
        for _ in range(20):
            one.read_until(b"data: ")
            other.read_until(b"data: ")
