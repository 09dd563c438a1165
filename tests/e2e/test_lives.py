"""Restarts and the end, with the real engine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import openai
import pytest

from llama_gguf.engines.locate import locate
from tests.e2e.conftest import MODEL, Served, start, stop
from tests.support.processes import command_line, free_ports, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def send_request(served: Served) -> str:
    with openai.OpenAI(base_url=served.base_url, api_key=served.key, max_retries=0) as client:
        response = client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=4)
        return response.choices[0].text


def test_a_killed_gateway_is_restarted_and_the_model_stays_loaded(own_server: Served) -> None:
    engine = own_server.child("llama-server")
    gateway = own_server.child("--listen-fd")

    os.kill(gateway, signal.SIGKILL)
    own_server.until(lambda: own_server.child("--listen-fd") not in (0, gateway), "a new gateway")

    assert send_request(own_server)  # it waits in the listening socket until it is accepted
    assert own_server.child("llama-server") == engine


def test_a_killed_engine_is_restarted_and_requests_wait_for_it(own_server: Served) -> None:
    engine = own_server.child("llama-server")

    os.kill(engine, signal.SIGKILL)
    own_server.until(lambda: own_server.get("/health")[0] == 503, "the news of its death")

    assert send_request(own_server)
    assert own_server.child("llama-server") not in (0, engine)
    assert "signal SIGKILL" in own_server.output


def test_an_engine_that_has_lost_its_rpc_peer_serves_and_is_reported(
    model_file: Path, tmp_path: Path
) -> None:
    assert model_file.is_file()
    engine = locate("", os.environ["PATH"], environ=os.environ)
    program = Path(engine.path).with_name("ggml-rpc-server")
    if not program.exists():
        pytest.skip("this build of llama-server has no RPC server beside it")
    (port,) = free_ports(1)
    argv = [str(program), "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        peer = subprocess.Popen(
            argv,
            env={**os.environ, **engine.environment_changes},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(peer.wait)
        stack.callback(peer.kill)
        until(lambda: listens(port), lambda: "the RPC server does not listen")
        served = start(tmp_path, {"EXTRA_ARGS": f"--rpc 127.0.0.1:{port}"})
        stack.callback(stop, served)
        served.until_ready()
        assert served.get("/health")[1]["engine"]["missing_devices"] == []
        assert send_request(served)

        peer.kill()
        peer.wait()
        with contextlib.suppress(openai.APIError):
            send_request(served)  # llama-server aborts when it needs the peer
        served.until(lambda: missing_of(served) != [], "an engine without its peer")

        engine_facts = served.get("/health")[1]["engine"]
        assert engine_facts["missing_devices"] == [f"RPC (127.0.0.1:{port})"]
        assert engine_facts["state"] == "ready"
        assert f"127.0.0.1:{port}" in engine_facts["detail"]
        assert served.get("/metrics")[1]["llama_gguf_backend_degraded"] == 1
        assert "runs without devices that it had before" in served.output
        assert send_request(served)


def missing_of(served: Served) -> list[str]:
    engine = (served.get("/health")[1] or {}).get("engine", {})
    return list(engine.get("missing_devices", []))


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_sigterm_leaves_no_process_and_no_temporary_file(model_file: Path, tmp_path: Path) -> None:
    assert model_file.is_file()
    (temporary := tmp_path / "tmp").mkdir()
    (data := tmp_path / "data").mkdir()
    served = start(data, {"TMPDIR": str(temporary)})
    try:
        served.until_ready()
        children = served.children()
        assert len(children) == 2
        assert send_request(served)
    finally:
        status = stop(served)

    assert status == 0
    assert [pid for pid in children if command_line(pid)] == []
    assert list(temporary.iterdir()) == []
    names = {p.name for p in data.iterdir()}
    assert names == {"api_keys.txt", "logs", "output.txt", "run", "usage"}
