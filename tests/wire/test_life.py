"""The gateway as a process: signals, reloads of keys, draining, its log."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, Response, code_of, event, request
from tests.support.processes import until
from tests.wire.conftest import NewGateway

PING = request("GET", "/ping", key=None)


def models(gateway: GatewayProcess, key: str = KEY) -> Response:
    return gateway.send_request(request("GET", "/v1/health", key=key))


@pytest.fixture(scope="module")
def in_front_of_llama(shared_processes: Processes) -> GatewayProcess:
    return shared_processes.gateway(shared_processes.fake_llama().address)


# Keys ---------------------------------------------------------------------------------------------


def test_sighup_loads_new_keys_and_revokes_removed_ones(processes: Processes) -> None:
    gateway = processes.gateway(processes.fake_llama().address)
    assert models(gateway).status == 200
    gateway.keys_file.write_text("new:sk-new-0123456789abc\n")
    gateway.signal(signal.SIGHUP)

    until(lambda: models(gateway).status == 401, "the removed key is refused")
    assert models(gateway, "sk-new-0123456789abc").status == 200
    assert models(gateway, OTHER_KEY).status == 401


def test_reload_loads_new_keys_and_a_broken_file_changes_nothing(processes: Processes) -> None:
    gateway = processes.gateway(processes.fake_llama().address)
    reload = request("POST", "/reload", key=OTHER_KEY)
    gateway.keys_file.write_text(f"bob:{OTHER_KEY}\n")
    response = gateway.send_request(reload)
    assert json.loads(response.body) == {"status": "ok", "keys_loaded": 1}
    assert models(gateway).status == 401

    gateway.keys_file.write_bytes(b"\xff\xfe\n")
    assert code_of(gateway.send_request(reload)) == "reload_failed"
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.log.count("not UTF-8") == 1, "the log has the reason")
    gateway.keys_file.unlink()
    assert code_of(gateway.send_request(reload)) == "reload_failed"

    assert models(gateway, OTHER_KEY).status == 200
    for secret in (KEY, OTHER_KEY):
        assert secret not in gateway.log


# The end ------------------------------------------------------------------------------------------


def drain(gateway: GatewayProcess) -> None:
    """Send SIGTERM and wait until the drain has begun."""
    gateway.signal(signal.SIGTERM)
    until(lambda: gateway.health()["status"] == "draining")


def test_sigterm_drains_a_running_stream_to_its_end(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(request(body=b'{"stream":true}'))
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        wire.read_until(event(1))
        drain(gateway)
        refused = gateway.send_request(request(body=b"{}"))
        assert refused.status == 503
        assert code_of(refused) == "draining"
        assert "retry-after" in refused

        visit.send(event(2))
        assert wire.read_until(event(2)) == event(2)
        visit.finish(LAST_CHUNK)
        assert wire.read_rest() == LAST_CHUNK

    assert gateway.wait() == 0


def test_a_second_sigterm_cuts_running_streams(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(request(body=b'{"stream":true}'))
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        wire.read_until(event(1))
        drain(gateway)
        gateway.signal(signal.SIGTERM)

        assert gateway.wait() == 0
        wire.was_reset()
        assert LAST_CHUNK not in wire.buffer
    visit.wait_until_cut()


def test_a_cut_at_the_end_is_a_reset(gateway: GatewayProcess, engine: ScriptedEngine) -> None:
    # A FIN would be the clean end of a response to HTTP/1.0.
    with gateway.connect() as wire:
        wire.send(request(body=b'{"stream":true}', version="1.0"))
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        wire.read_until(b"\n\n")
        drain(gateway)
        gateway.signal(signal.SIGTERM)

        assert wire.was_reset()
        assert gateway.wait() == 0


def test_a_stream_that_outlasts_the_drain_timeout_is_cut(
    new_gateway: NewGateway, engine: ScriptedEngine
) -> None:
    gateway = new_gateway(DRAIN_TIMEOUT=0.2)
    with gateway.connect() as wire:
        wire.send(request(body=b"{}"))
        visit = engine.visit()
        gateway.signal(signal.SIGTERM)

        assert gateway.wait() == 0
        wire.was_reset()
        assert wire.buffer == b""
    visit.wait_until_cut()
    assert "outcome=client_left:" in (gateway.folder / "logs" / "api_access.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_gateway_exits_at_once(number: signal.Signals, gateway: GatewayProcess) -> None:
    with gateway.connect() as wire:
        wire.send(PING)
        assert wire.response().status == 200
        gateway.signal(number)

        assert wire.read_rest() == b""
    assert gateway.wait() == 0
    assert "Traceback" not in gateway.log


# Without the engine -------------------------------------------------------------------------------


def is_in(gateway: GatewayProcess, state: ChildState) -> bool:
    return bool(gateway.health()["engine"]["state"] == state)


def test_the_gateways_own_paths_never_open_a_connection_to_the_engine(processes: Processes) -> None:
    ours, theirs = socket.socketpair()
    with (
        closing(ours),
        closing(theirs),
        socket.create_server(("127.0.0.1", 0)) as counter,
    ):
        counter.setblocking(False)
        # With a supervisor, the gateway does not probe: no connection at all is expected.
        gateway = processes.gateway(
            counter.getsockname(),
            flags=("--channel-fd", str(theirs.fileno())),
            pass_fds=(theirs.fileno(),),
            wait_for=503,
        )
        for state in ChildState:
            ours.sendall(EngineStatus(state, since=0.0, slots=1).to_line())
            until(partial(is_in, gateway, state))
            assert gateway.send_request(PING).status == 200
            assert gateway.send_request(request("OPTIONS", "/v1/health", key=None)).status == 204
            for target in ("/health", "/metrics", "/metrics?format=prometheus", "/reload"):
                gateway.send_request(request("GET", target, key=None))
        gateway.send_request(request("POST", "/reload"))

        with pytest.raises(BlockingIOError):
            counter.accept()


# The access log -----------------------------------------------------------------------------------


def test_every_request_has_its_line_in_the_access_log(processes: Processes) -> None:
    gateway = processes.gateway(processes.fake_llama().address, LOG_FORMAT="json")
    gateway.send_request(request("POST", "/v1/chat/completions", "x-request-id: one", body=b"{}"))
    gateway.send_request(request("GET", "/v1/health?secret", "x-request-id: two", key=None))
    gateway.send_request(b"nonsense\r\n\r\n")
    path = gateway.folder / "logs" / "api_access.log"

    def lines() -> dict[str, dict[str, object]]:
        text = path.read_text() if path.exists() else ""
        facts = [json.loads(line) for line in text.splitlines()]
        return {f["request_id"]: f for f in facts if f["path"] != "/health"}

    until(lambda: len(lines()) == 3, "three lines are written")
    one, two = lines()["one"], lines()["two"]
    assert (one["status"], one["key_id"], one["outcome"]) == (200, "alice", "done")
    assert (two["status"], two["key_id"], two["path"]) == (401, "-", "/v1/health")
    assert one["client"] == "127.0.0.1"
    assert KEY not in path.read_text()


def test_sighup_reopens_the_access_log(processes: Processes) -> None:
    gateway = processes.gateway(processes.fake_llama().address)
    path = gateway.folder / "logs" / "api_access.log"
    until(lambda: path.exists() and path.read_text())
    path.rename(path.with_suffix(".old"))
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.log.count("API keys loaded") == 2)
    gateway.send_request(PING)

    until(lambda: path.exists() and " path=/ping " in path.read_text())


def test_a_log_that_cannot_be_written_does_not_affect_requests(
    processes: Processes, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "a file"
    in_the_way.write_text("")
    gateway = processes.gateway(processes.fake_llama().address, LOG_DIR=in_the_way)

    until(lambda: "cannot be written" in gateway.log)
    assert models(gateway).status == 200


@pytest.fixture
def hanging(processes: Processes, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway whose disk hangs: opening a FIFO for writing blocks until it has a reader."""
    fifo = tmp_path / "api_access.log"
    os.mkfifo(fifo)
    gateway = processes.gateway(
        processes.fake_llama().address, LOG_DIR=tmp_path, CLIENT_HEADER_TIMEOUT=0.5
    )
    with gateway.connect() as wire:
        wire.send(PING)
        wire.response()
    yield gateway
    gateway.signal(signal.SIGKILL)


def test_a_log_that_hangs_does_not_delay_timers(hanging: GatewayProcess) -> None:
    with hanging.connect() as wire:
        wire.send(b"GET /v1/health HTTP/1.1\r\n")
        assert wire.response().status == 408


def test_a_log_that_hangs_does_not_delay_the_exit(hanging: GatewayProcess) -> None:
    with hanging.connect() as wire:
        wire.send(b"GET /v1/health HTTP/1.1\r\n")
        wire.response()  # a tick has passed by then
    hanging.signal(signal.SIGTERM)

    assert hanging.process.wait(5) == 0


# Deadlines, on a real clock -----------------------------------------------------------------------


def test_deadlines_are_kept(processes: Processes) -> None:
    gateway = processes.gateway(
        processes.fake_llama().address,
        CLIENT_HEADER_TIMEOUT=0.5,
        CLIENT_BODY_TIMEOUT=0.5,
        KEEPALIVE_TIMEOUT=0.5,
        REQUEST_TIMEOUT=0.5,
    )
    silent = request("POST", "/v1/completions", "x-fault: silence", body=b"{}")
    stream = request("POST", "/v1/completions", "x-fault: silent-stream", body=b"{}")
    with (
        gateway.connect() as head,
        gateway.connect() as body,
        gateway.connect() as idle,
        gateway.connect() as nothing,
        gateway.connect() as silence,
        gateway.connect() as streaming,
    ):
        head.send(b"GET /v1/health HT")
        body.send(request(body=b"12345")[:-1])
        idle.send(PING)
        silence.send(silent)
        streaming.send(stream)

        assert head.response().status == 408
        assert body.response().status == 408
        assert idle.response().status == 200
        assert idle.read_rest() == b""
        assert nothing.read_rest() == b""
        assert code_of(silence.response()) == "backend_timeout"
        assert b'"code": "backend_timeout"' in streaming.response().chunks[-1]


def test_two_clients_do_not_wait_for_each_other(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as slow, gateway.connect() as quick:
        slow.send(request(body=b'{"slow":1}'))
        visit = engine.visit()
        quick.send(request(body=b'{"quick":1}'))
        engine.visit().send(OK)
        assert quick.response().status == 200
        visit.send(OK)
        assert slow.response().status == 200


def test_the_metrics_parse_as_prometheus_text(in_front_of_llama: GatewayProcess) -> None:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    models(in_front_of_llama)
    response = in_front_of_llama.send_request(
        request("GET", "/metrics", "Accept: text/plain", key=None)
    )
    families = {f.name: f for f in text_string_to_metric_families(response.body.decode())}

    assert families["llama_gguf_backend_up"].samples[0].value == 1
    assert any(
        s.labels == {"route": "other", "method": "GET", "status": "200"}
        for s in families["llama_gguf_requests"].samples
    )
