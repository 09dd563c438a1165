"""The queue over real sockets: the engine's slots, and clients that leave the queue."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess, Processes
from tests.support.messages import LAST_CHUNK, STREAM_HEAD, event, request
from tests.support.processes import until

RESPONSE = STREAM_HEAD + event(1) + LAST_CHUNK


def numbered(n: int) -> bytes:
    return request(body=b'{"stream":true,"n":%d}' % n)


def test_health_has_the_slots_and_the_context_of_each_as_the_engine_reports_them(
    gateway: GatewayProcess,
) -> None:
    facts = gateway.health()

    assert facts["slots"] == {"used": 0, "total": 4}
    assert facts["model"] == {"name": "m", "context": 2048}


def test_with_four_slots_and_six_streams_two_wait_and_are_then_served(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(gateway.connect()) for _ in range(6)]
        for n, wire in enumerate(wires):
            wire.send(numbered(n))
            until(partial(have_arrived, gateway, n + 1))
        visits = [engine.visit() for _ in range(4)]
        assert places(gateway) == (4, 2)
        assert not engine.has_visit

        visits[2].finish(RESPONSE)
        assert engine.visit().body.endswith(b'"n":4}')
        visits[0].finish(RESPONSE)
        last = engine.visit()
        assert last.body.endswith(b'"n":5}')
        assert places(gateway) == (4, 0)
        last.finish(RESPONSE)

        assert wires[5].response().is_whole


def have_arrived(gateway: GatewayProcess, number: int) -> bool:
    return sum(places(gateway)) == number


def places(gateway: GatewayProcess) -> tuple[int, int]:
    """The numbers of running and of queued requests."""
    facts = gateway.health()
    return facts["slots"]["used"], facts["queue"]["length"]


def test_a_request_whose_client_left_the_queue_never_reaches_the_engine(
    engine: ScriptedEngine, processes: Processes
) -> None:
    gateway = processes.gateway(("127.0.0.1", engine.port), MAX_CONCURRENT_REQUESTS=1)
    with gateway.connect() as first, gateway.connect() as third:
        first.send(numbered(1))
        visit = engine.visit()
        second = gateway.connect()
        second.send(numbered(2))
        until(lambda: places(gateway) == (1, 1))
        third.send(numbered(3))
        until(lambda: places(gateway) == (1, 2))
        second.close()
        until(lambda: places(gateway) == (1, 1))
        visit.finish(RESPONSE)

        assert engine.visit().body.endswith(b'"n":3}')
        assert not engine.has_visit


def test_many_concurrent_streams_are_all_served_completely(processes: Processes) -> None:
    llama = processes.fake_llama()
    gateway = processes.gateway(llama.address)
    raw = request("POST", "/v1/chat/completions", "x-events: 20", body=b'{"stream": true}')
    with ExitStack() as stack:
        wires = [stack.enter_context(gateway.connect()) for _ in range(30)]
        for wire in wires:
            wire.send(raw)
        for wire in wires:
            response = wire.response()
            assert response.is_whole
            assert len(response.chunks) == 21

    assert len(llama.seen("/v1/chat/completions")) == 30
    until(lambda: places(gateway) == (0, 0))
