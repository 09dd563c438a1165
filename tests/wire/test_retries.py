"""OpenAI's client with rejected and waiting requests, on a clock that runs faster."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEY
from tests.support.messages import LAST_CHUNK, STREAM_HEAD, chunk, request
from tests.support.processes import until
from tests.wire.conftest import NewGateway

SPEED: Final = 20
"""Of the gateway's clock and the client's delays: a minute takes three seconds."""
FAST_GATEWAY: Final = f"""\
import sys, time
real = time.monotonic
time.monotonic = lambda: real() * {SPEED}
from llama_gguf.cli.main import main
sys.exit(main())
"""
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's delays before its retries, in seconds of the fast clock."""
    slept: list[float] = []
    really_sleep = time.sleep

    def sleep(seconds: float) -> None:
        if seconds >= 1:  # otherwise it is a wait of this test
            slept.append(seconds)
            seconds /= SPEED
        really_sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return slept


def client_of(gateway: GatewayProcess, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=KEY, max_retries=retries
    )


def test_a_client_over_its_rate_limit_retries_after_the_stated_delay_and_is_served(
    processes: Processes, slept: list[float]
) -> None:
    gateway = processes.gateway(
        processes.fake_llama().address,
        program=(sys.executable, "-c", FAST_GATEWAY),
        MAX_REQUESTS_PER_MINUTE=2,
    )
    with client_of(gateway, retries=1) as client:
        for _ in range(3):
            client.chat.completions.create(model="m", messages=QUESTION)

    assert len(slept) == 1, "refused once, and admitted the next time"
    assert 1 <= slept[0] <= 60


# Streams that wait --------------------------------------------------------------------------------

DELTA: Final = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
)


@pytest.fixture
def patient(new_gateway: NewGateway) -> GatewayProcess:
    return new_gateway(SSE_KEEPALIVE="0.5", MAX_CONCURRENT_REQUESTS=1, MAX_QUEUE_WAIT="3")


class Listener:
    """A client that reads a stream in a separate thread."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.pieces: list[str | None] = []
        self.error: openai.APIError | None = None
        self.thread = threading.Thread(target=self._listen, args=(gateway,))
        self.thread.start()

    def _listen(self, gateway: GatewayProcess) -> None:
        try:
            with client_of(gateway) as client:
                stream = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
                self.pieces += [piece.choices[0].delta.content for piece in stream]
        except openai.APIError as error:
            self.error = error


@pytest.fixture
def listen(patient: GatewayProcess) -> Iterator[Callable[[], Listener]]:
    listeners: list[Listener] = []

    def listen() -> Listener:
        listeners.append(Listener(patient))
        return listeners[-1]

    yield listen
    for listener in listeners:
        listener.thread.join()


def is_waiting(gateway: GatewayProcess) -> bool:
    return bool(gateway.health()["queue"]["length"])


def test_a_client_ignores_the_comments_and_gets_its_stream(
    patient: GatewayProcess, engine: ScriptedEngine, listen: Callable[[], Listener]
) -> None:
    with patient.connect() as raw:
        raw.send(request(body=b"{}"))
        first = engine.visit()
        raw_waiter = patient.connect()
        raw_waiter.send(request(body=b'{"stream":true}'))
        raw_waiter.read_until(chunk(b": waiting\n\n"))
        listener = listen()
        until(lambda: patient.health()["queue"]["length"] == 2)
        raw_waiter.close()
        first.finish(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        response = engine.visit()
        response.finish(STREAM_HEAD + chunk(DELTA) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
        listener.thread.join()

    assert listener.error is None
    assert listener.pieces == ["hello"]


def test_a_client_whose_wait_exceeds_the_limit_gets_an_error_and_no_clean_end(
    patient: GatewayProcess, engine: ScriptedEngine, listen: Callable[[], Listener]
) -> None:
    with patient.connect() as raw:
        raw.send(request(body=b"{}"))
        engine.visit()
        listener = listen()
        listener.thread.join()

    assert listener.pieces == []
    assert listener.error is not None
    assert listener.error.code == "queue_timeout"
