"""Restarts and the end, with the real engine."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import MODEL, Served, stop
from tests.support.processes import command_line

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


def test_sigterm_leaves_no_process_and_no_temporary_file(own_server: Served) -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    children = own_server.children()
    assert len(children) == 2
    assert send_request(own_server)

    assert stop(own_server) == 0

    assert [pid for pid in children if command_line(pid)] == []
    assert set(os.listdir(tempfile.gettempdir())) - before == set()
    names = {p.name for p in Path(own_server.data_dir).iterdir()}
    assert names == {"api_keys.txt", "logs", "output.txt", "usage"}
