"""Engines on unix sockets, slow, absent or dying; and responses that pass unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clients import Wire
from tests.support.gateways import FakeLlama, GatewayProcess, Processes
from tests.support.keys import BACKEND_KEY, KEY
from tests.support.messages import Response, chunk, code_of, request
from tests.support.processes import free_port, until

POST = request(body=b'{"n":1}')


def test_requests_reach_an_engine_on_a_unix_socket(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "llama.sock"
    llama = processes.fake_llama(socket_path=path)
    gateway = processes.gateway(llama.address)
    response = gateway.send_request(POST)

    assert response.status == 200
    assert response.body == b'{"echo": "{\\"n\\":1}"}'
    (seen,) = llama.seen()
    fields = {name.lower(): value for name, value in seen["fields"]}
    assert fields["host"] == "localhost"
    assert fields["authorization"] == f"Bearer {BACKEND_KEY}"


def test_without_an_engine_requests_wait_and_are_rejected(processes: Processes) -> None:
    gateway = processes.gateway(("127.0.0.1", free_port()), wait_for=503, MAX_QUEUE_WAIT=0.5)
    until(lambda: gateway.health()["engine"]["state"] == "unreachable")

    assert gateway.send_request(request("GET", "/ping", key=None)).status == 200
    assert gateway.send_request(request("GET", "/health", key=None)).status == 503
    response = gateway.send_request(POST)
    assert response.status == 503
    assert code_of(response) == "backend_unavailable"
    assert "retry-after" in response


def test_a_request_is_held_until_the_model_has_loaded(processes: Processes, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    llama = processes.fake_llama("--load-until", str(loaded))
    gateway = processes.gateway(llama.address, wait_for=503)
    until(lambda: gateway.health()["status"] == "loading")
    with gateway.connect() as wire:
        wire.send(POST)
        until(lambda: gateway.health()["queue"]["length"] == 1)
        loaded.touch()

        assert wire.response().status == 200


def test_the_death_of_an_engine_is_noticed_and_its_successor_is_used(
    processes: Processes, tmp_path: Path
) -> None:
    path = tmp_path / "llama.sock"
    first = processes.fake_llama(socket_path=path)
    gateway = processes.gateway(first.address)
    assert gateway.send_request(POST).status == 200
    first.process.kill()
    first.process.wait()
    until(lambda: gateway.health()["status"] == "unreachable")
    with gateway.connect() as wire:
        wire.send(POST)
        until(lambda: gateway.health()["queue"]["length"] == 1)
        second = processes.fake_llama(socket_path=path)

        assert wire.response().status == 200
    assert len(second.seen()) == 1


# The same through the gateway and straight --------------------------------------------------------


@pytest.fixture(scope="module")
def llama(shared_processes: Processes) -> FakeLlama:
    return shared_processes.fake_llama()


@pytest.fixture(scope="module")
def in_front(shared_processes: Processes, llama: FakeLlama) -> GatewayProcess:
    return shared_processes.gateway(llama.address)


SAME = {
    "a body": POST,
    "an empty body": request(body=b""),
    "a body of all bytes": request(body=bytes(range(256))),
    "a large body": request(body=b"x" * 1_000_000),
    "a path with escapes and a query": request("GET", "/v1/re%73ponses/%C3%A9?a=b%20c&d=%2f../"),
    "another method": request("PUT", "/v1/responses/1", body=b"{}"),
    "a stream": request(body=b'{"stream":true}'),
    "a long stream": request("POST", "/v1/completions", "x-events: 300", body=b'{"stream": true}'),
    "until the end": request("POST", "/v1/completions", "x-fault: close-delimited", body=b"{}"),
    "an early hint": request("POST", "/v1/completions", "x-fault: early-head", body=b"{}"),
    "no content": request("POST", "/v1/completions", "x-fault: no-content", body=b"{}"),
    "many fields": request("GET", "/v1/health", *(f"X-{n}: {n}" for n in range(50))),
}


def answer_of(address: tuple[str, int], raw: bytes) -> Response:
    with Wire(address) as wire:
        wire.send(raw)
        return wire.response()


@pytest.mark.parametrize("raw", SAME.values(), ids=SAME.keys())
def test_a_response_passes_the_gateway_unchanged(
    raw: bytes, in_front: GatewayProcess, llama: FakeLlama
) -> None:
    assert isinstance(llama.address, tuple)
    straight = answer_of(llama.address, raw)
    through = in_front.send_request(raw)

    assert through.status == straight.status
    assert through.body == straight.body
    if raw is not SAME["until the end"]:  # which is sent chunked, so that a cut is visible
        assert through.chunks == straight.chunks
    assert through.is_whole
    assert through.all("content-type") == straight.all("content-type")
    assert "server" not in through
    assert "access-control-allow-origin" not in through


def test_a_request_passes_the_gateway_unchanged(in_front: GatewayProcess, llama: FakeLlama) -> None:
    fields = ("X-One: 1", "x-one: 2", "Accept: a, b;q=0.5", "User-Agent: me/1 (x)", "Cookie: a=b")
    in_front.send_request(request("POST", "/v1/rerank?q=%20", *fields, body=b"same"))
    seen = llama.seen("/v1/rerank?q=%20")[-1]

    assert seen["method"] == "POST"
    assert seen["body"] == "same"
    assert [f"{n}: {v}" for n, v in seen["fields"]][2:7] == list(fields)
    assert KEY not in str(seen)


def test_a_chunked_upload_arrives_with_its_length(
    in_front: GatewayProcess, llama: FakeLlama
) -> None:
    head = request("POST", "/v1/reranking", "Transfer-Encoding: chunked")
    with in_front.connect() as wire:
        wire.send(head)
        for piece in (b"one ", b"two"):
            wire.send(chunk(piece))
        wire.send(b"0\r\n\r\n")
        assert wire.response().body == b'{"echo": "one two"}'

    assert ["Content-Length", "7"] in llama.seen("/v1/reranking")[-1]["fields"]


@pytest.mark.parametrize(
    ("fault", "status"), [("nonsense", 502), ("gone", 502), ("long-head", 502)]
)
def test_a_malformed_response_of_the_engine_becomes_502(
    fault: str, status: int, in_front: GatewayProcess
) -> None:
    raw = request("POST", "/v1/completions", f"x-fault: {fault}", body=b"{}")
    response = in_front.send_request(raw)

    assert response.status == status
    assert code_of(response) == "backend_error"


@pytest.mark.parametrize("fault", ["cut", "cut-mid-event"])
def test_a_cut_stream_never_looks_complete(fault: str, in_front: GatewayProcess) -> None:
    with in_front.connect() as wire:
        wire.send(request("POST", "/v1/completions", f"x-fault: {fault}", body=b"{}"))
        try:
            assert not wire.response().is_whole
        except ConnectionResetError:
            assert fault == "cut-mid-event"


def test_consecutive_and_pipelined_requests_are_served(in_front: GatewayProcess) -> None:
    with in_front.connect() as wire:
        for n in range(5):
            wire.send(request(body=b"%d" % n))
            assert wire.response().body == b'{"echo": "%d"}' % n
        wire.send(b"".join(request(body=b"%d" % n) for n in range(20)))
        for n in range(20):
            assert wire.response().body == b'{"echo": "%d"}' % n


def test_a_hundred_requests_outlast_the_engine_s_kept_connections(
    in_front: GatewayProcess,
) -> None:
    with in_front.connect() as wire:
        for _ in range(250):
            wire.send(request("GET", "/v1/health"))
            assert wire.response().status == 200
