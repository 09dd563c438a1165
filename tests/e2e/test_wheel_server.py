"""The engine of the wheel xllamacpp, under `serve`, as arm64 gets it."""

from __future__ import annotations

import json
import sysconfig

import pytest

from tests.e2e.conftest import Served
from tests.support.messages import request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    program = f"{sysconfig.get_path('scripts')}/llama-gguf-engine"
    return {"LLAMA_SERVER": program, "PARALLEL": "2", "CTX": "4096"}


def test_it_serves_streams_and_reports_what_check_shows(served: Served) -> None:
    body = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "stream": True,
    }
    with served.wire() as wire:
        data = json.dumps(body).encode()
        wire.send(request("POST", "/v1/chat/completions", body=data, key=served.key))
        response = wire.response()
    status, health = served.get("/health")

    assert response.status == 200
    assert response.body.endswith(b"data: [DONE]\n\n")
    assert status == 200
    assert health["slots"]["total"] == 2
    assert health["model"]["context"] == 2048
    assert "xllamacpp" in health["engine"]["version"]


def test_a_signal_ends_it_with_serve(own_server: Served) -> None:
    own_server.process.terminate()

    assert own_server.process.wait(30) == 0
