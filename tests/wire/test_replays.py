"""Deaths of the engine at each phase of a request: the table of what becomes of it.

The gateway has no supervisor here: the test ends each engine, and starts the next one. What a
request gets, how often an engine has computed it, and what is counted of it.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.clients import Wire
from tests.support.gateways import FakeLlama, GatewayProcess, Processes
from tests.support.messages import LAST_CHUNK, chunk, code_of, request
from tests.support.processes import until

CHAT: Final = "/v1/chat/completions"
NUMBERS: Final = itertools.count()
STREAM: Final = b'{"stream": true}'
LONG: Final = b'{"x":"%b"}' % (b"x" * 2_000_000)
"""More than the buffers of the engine's socket hold."""
DONE: Final = b"data: [DONE]\n\n"


class Engines:
    """One engine after the other, each at the same address."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._path = folder / "llama.sock"
        self._all: list[FakeLlama] = []
        self._until = folder / "until"
        self._folder = folder
        self._count = 0
        self.start()

    def start(self, *flags: str) -> FakeLlama:
        self._all.append(self._processes.fake_llama(*flags, socket_path=self._path))
        return self._all[-1]

    @property
    def present(self) -> FakeLlama:
        return self._all[-1]

    def kill(self) -> None:
        self.present.process.kill()
        self.present.process.wait()

    def hold(self, phase: str) -> tuple[str, str]:
        """Fields of a request that stops at *phase* until ``release``."""
        self._count += 1
        self._until = self._folder / f"until-{self._count}"
        return f"x-hold: {phase}", f"x-until: {self._until}"

    def until_held(self, count: int = 1) -> None:
        held = self._until.with_name(self._until.name + ".held")
        until(lambda: held.exists() and len(held.read_text().splitlines()) >= count, str(held))

    def release(self) -> None:
        self._until.touch()

    def seen(self) -> list[dict[str, Any]]:
        return [fact for engine in self._all for fact in engine.seen()]


@pytest.fixture(scope="module")
def engines(shared_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(shared_processes, tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def shared_gateway(shared_processes: Processes, engines: Engines) -> GatewayProcess:
    return shared_processes.gateway(engines.present.address, MAX_QUEUE_WAIT=20)


@pytest.fixture
def gateway(shared_gateway: GatewayProcess, engines: Engines) -> GatewayProcess:
    """Ready, in front of a running engine; shared by the tests."""
    if engines.present.process.poll() is not None:
        engines.start()
    until(lambda: shared_gateway.health()["status"] == "ok", "the engine is ready")
    return shared_gateway


def counted(gateway: GatewayProcess) -> dict[str, int]:
    """What usage and metrics count, of the only key."""
    usage = gateway.send_request(request("GET", "/usage")).json
    metrics = gateway.send_request(request("GET", "/metrics", key=None)).json
    total: dict[str, int] = usage["keys"][0]["total"]
    return {
        "requests": total["requests"],
        "tokens": total["completion_tokens"],
        "replays": sum(row["value"] for row in metrics["llama_gguf_replays"]),
    }


class Case:
    """A client with one request, and what has been counted of it since."""

    def __init__(self, gateway: GatewayProcess, engines: Engines, wire: Wire) -> None:
        self.wire = wire
        self.engines = engines
        self._gateway = gateway
        self._counted = counted(gateway)
        self._computed = len(engines.seen())
        self._id = f"case-{next(NUMBERS)}"

    def send(self, phase: str, body: bytes | None, *fields: str, **rest: Any) -> None:
        """Send a request that stops at *phase*."""
        fields = (f"x-request-id: {self._id}", *self.engines.hold(phase), *fields)
        self.wire.send(request("POST", CHAT, *fields, body=body, **rest))

    def until_got(self, part: bytes) -> None:
        """Wait for bytes of the response, which are not taken."""
        self.engines.until_held()
        if part:
            self.wire.buffer = self.wire.read_until(part) + self.wire.buffer

    def replace_engine(self) -> None:
        self.engines.kill()
        self.engines.release()
        self.engines.start()

    @property
    def computed(self) -> int:
        """How often an engine has received the request."""
        return len(self.engines.seen()) - self._computed

    @property
    def line(self) -> dict[str, str]:
        """Its only line in the access log."""
        (line,) = until(
            lambda: [line for line in self._gateway.logged() if self._id in line.values()]
        )
        return line

    def counts(self) -> dict[str, int]:
        return {name: n - self._counted[name] for name, n in counted(self._gateway).items()}


@pytest.fixture
def case(gateway: GatewayProcess, engines: Engines) -> Iterator[Case]:
    with gateway.connect() as wire:
        yield Case(gateway, engines, wire)


@dataclass(frozen=True)
class Row:
    phase: str
    body: bytes
    got: bytes = b""
    """What the client has of the response when the engine dies."""
    computed: int = 2


SURVIVED: Final = {
    "before its body is sent": Row("body", LONG, computed=1),
    "when it has been sent": Row("sent", b"{}"),
    "when it has been sent, for a stream": Row("sent", STREAM),
    "after the head": Row("head", b"{}"),
    "after the head of a stream": Row("head", STREAM, b"\r\n\r\n"),
    "after a comment": Row("comment", STREAM, chunk(b":\n\n")),
}


@pytest.mark.parametrize("row", SURVIVED.values(), ids=SURVIVED.keys())
def test_a_death_before_the_response_has_begun_loses_nothing(row: Row, case: Case) -> None:
    case.send(row.phase, row.body)
    case.until_got(row.got)
    case.replace_engine()
    response = case.wire.response()

    assert (response.status, response.is_whole) == (200, True)
    if row.body is STREAM:
        assert response.body.count(b'"n":0') == 1
        assert response.body.endswith(DONE)
    else:
        assert response.json == {"echo": row.body.decode()}
    assert case.computed == row.computed
    assert case.counts() == {"requests": 1, "tokens": 5 * (row.body is STREAM), "replays": 1}
    line = case.line
    assert (line["outcome"], line["replays"], line["status"]) == ("done", "1", "200")
    assert int(line["bytes_in"]) == len(row.body)


BEGUN: Final = {
    "in the middle of an event": Row("mid-event", STREAM, b'{"n":0,"'),
    "between two events": Row("event", STREAM, b'_tokens":5}}\n\n\r\n'),
    "in the middle of a body": Row("mid-event", b"{}", b'{"echo":'),
}


@pytest.mark.parametrize("row", BEGUN.values(), ids=BEGUN.keys())
def test_a_death_in_the_response_breaks_it_readably_where_an_event_may_follow(
    row: Row, case: Case
) -> None:
    case.send(row.phase, row.body)
    case.until_got(row.got)
    case.replace_engine()
    is_readable = row.phase == "event"

    assert case.wire.was_reset() != is_readable
    received = case.wire.buffer
    assert (b'data: {"error": ' in received) == is_readable
    assert LAST_CHUNK not in received
    assert DONE not in received
    assert case.computed == 1
    assert case.line["outcome"] == "backend_error"
    assert "replays" not in case.line
    assert case.counts()["replays"] == 0


def test_a_death_after_the_last_event_is_no_failure(case: Case) -> None:
    case.send("last", STREAM)
    case.until_got(chunk(DONE))
    case.engines.kill()

    assert case.wire.response().is_whole
    assert case.line["outcome"] == "done"


def test_the_death_of_the_second_engine_too_is_the_last(case: Case) -> None:
    case.send("sent", b'{"deadly":1}')
    for engine in (1, 2):
        case.engines.until_held(engine)
        case.engines.kill()
        case.engines.start()
    response = case.wire.response()

    assert (response.status, code_of(response)) == (502, "engine_crashed")
    assert response["x-should-retry"] == "false"
    assert case.computed == 2
    assert (case.line["outcome"], case.line["replays"]) == ("engine_crashed", "1")

    case.wire.send(request("POST", CHAT, body=b'{"deadly":1}'))
    assert code_of(case.wire.response()) == "engine_crashed"
    case.wire.send(request("POST", CHAT, body=b'{"harmless":1}'))
    assert case.wire.response().status == 200
    assert case.computed == 3


def test_a_client_that_leaves_before_the_next_engine_comes_costs_it_nothing(case: Case) -> None:
    case.send("sent", b"{}")
    case.until_got(b"")
    case.engines.kill()
    case.wire.close()

    assert (case.line["outcome"], case.line["status"]) == ("client_left:queued", "499")
    case.engines.release()
    case.engines.start()
    assert case.computed == 1


def test_a_client_that_leaves_while_it_is_sent_again_has_left(case: Case) -> None:
    case.send("sent", b"{}")
    case.until_got(b"")
    case.engines.kill()
    case.engines.start()
    case.engines.until_held(2)
    case.wire.close()
    line = case.line
    case.engines.release()

    assert (line["outcome"], line["replays"]) == ("client_left:before_first_byte", "1")
    assert case.counts() == {"requests": 1, "tokens": 0, "replays": 1}


def test_a_chunked_upload_is_sent_again_whole(case: Case) -> None:
    case.send("sent", None, "Transfer-Encoding: chunked")
    for piece in (b'{"a":', b'"b"}'):
        case.wire.send(chunk(piece))
    case.wire.send(LAST_CHUNK)
    case.until_got(b"")
    case.replace_engine()

    assert case.wire.response().json == {"echo": '{"a":"b"}'}
    assert case.computed == 2


def test_a_client_of_http_1_0_gets_its_stream_too(case: Case) -> None:
    case.send("comment", STREAM, version="1.0")
    case.until_got(b":\n\n")
    case.replace_engine()
    response = case.wire.response()

    assert response.is_whole
    assert response.body.startswith(b":\n\n:\n\ndata: ")
    assert response.body.endswith(DONE)


def test_requests_that_were_sent_ahead_follow_in_their_order(case: Case) -> None:
    case.send("sent", b'{"n":1}')
    case.wire.send(request("POST", CHAT, body=b'{"n":2}') + request("GET", "/v1/health"))
    case.until_got(b"")
    case.replace_engine()
    responses = [case.wire.response() for _ in range(3)]

    assert [response.status for response in responses] == [200] * 3
    assert [r.body.count(b"echo") for r in responses] == [1, 1, 0]
    assert responses[1].json == {"echo": '{"n":2}'}


# With other settings ------------------------------------------------------------------------------


@pytest.fixture
def own_engines(processes: Processes, tmp_path: Path) -> Engines:
    return Engines(processes, tmp_path)


def test_no_limit_stands_between_a_request_and_its_second_engine(
    processes: Processes, own_engines: Engines
) -> None:
    gateway = processes.gateway(
        own_engines.present.address,
        MAX_QUEUE_SIZE=0,
        MAX_CONCURRENT_PER_KEY=1,
        MAX_REQUESTS_PER_MINUTE=1,
        SSE_KEEPALIVE="0.5",
    )
    with gateway.connect() as wire:
        wire.send(request("POST", CHAT, *own_engines.hold("sent"), body=STREAM))
        own_engines.until_held()
        own_engines.kill()
        wire.buffer = wire.read_until(chunk(b": waiting\n\n")) + wire.buffer
        own_engines.release()
        own_engines.start()
        response = wire.response()

    assert response.is_whole
    assert response.body.endswith(DONE)
    assert until(gateway.logged)[0]["replays"] == "1"


def test_without_replays_the_first_death_is_reported(
    processes: Processes, own_engines: Engines
) -> None:
    gateway = processes.gateway(own_engines.present.address, MAX_REPLAYS=0)
    with gateway.connect() as plain, gateway.connect() as stream:
        plain.send(request("POST", CHAT, *own_engines.hold("sent"), body=b"{}"))
        stream.send(request("POST", CHAT, *own_engines.hold("head"), body=STREAM))
        stream.buffer = stream.read_until(b"\r\n\r\n") + stream.buffer
        until(lambda: len(own_engines.seen()) == 2)
        own_engines.kill()

        assert code_of(plain.response()) == "backend_error"
        event = stream.response()
        assert event.status == 200
        assert not event.is_whole
        assert event.body.startswith(b'data: {"error": ')
    until(lambda: len(gateway.logged()) == 2)
    assert {line["outcome"] for line in gateway.logged()} == {"backend_error"}


def test_a_gateway_that_drains_still_sends_again_what_it_holds(
    processes: Processes, own_engines: Engines
) -> None:
    gateway = processes.gateway(own_engines.present.address)
    with gateway.connect() as wire:
        wire.send(request("POST", CHAT, *own_engines.hold("sent"), body=b"{}"))
        own_engines.until_held()
        own_engines.kill()
        gateway.signal(signal.SIGTERM)
        until(lambda: "Draining:" in gateway.log)
        own_engines.release()
        own_engines.start()

        response = wire.response()
        assert response.status == 200
        assert response["connection"] == "close"
    assert gateway.wait() == 0


def test_a_drain_that_ends_before_the_next_engine_comes_is_reported_to_each_client(
    processes: Processes, own_engines: Engines
) -> None:
    gateway = processes.gateway(own_engines.present.address, DRAIN_TIMEOUT="0.5")
    with gateway.connect() as first, gateway.connect() as second:
        fields = own_engines.hold("sent")
        for wire in (first, second):
            wire.send(request("POST", CHAT, *fields, body=b"{}"))
        own_engines.until_held(2)
        own_engines.kill()
        until(lambda: gateway.health()["status"] == "unreachable")
        gateway.signal(signal.SIGTERM)

        assert [code_of(wire.response()) for wire in (first, second)] == ["draining"] * 2
    assert gateway.wait() == 0
