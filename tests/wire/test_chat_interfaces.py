"""The calls of Open WebUI and LibreChat, replayed: what they send, and what they read of it.

Open WebUI's requests are those of its ``routers/tasks.py`` and ``routers/openai.py``, LibreChat's
those of its documentation of custom endpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agents.engine import CONTEXT, MODEL, TEXT, AgentEngine, Fault
from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEY
from tests.support.messages import request

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello!"}]
TASKS = ("title", "tags", "follow_ups")


@pytest.fixture
def engine() -> Iterator[AgentEngine]:
    with AgentEngine() as engine:
        yield engine


@pytest.fixture
def gateway(engine: AgentEngine, processes: Processes) -> GatewayProcess:
    return processes.gateway(("127.0.0.1", engine.server_port))


def post(gateway: GatewayProcess, body: dict[str, Any], *fields: str) -> Any:
    json_type = "Content-Type: application/json"
    raw = request("POST", CHAT, json_type, *fields, body=json.dumps(body).encode())
    return gateway.send_request(raw)


def deltas(body: bytes) -> str:
    """The text of a stream, as both programs put it together."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def test_open_webui_lists_the_models_and_chats(gateway: GatewayProcess) -> None:
    models = gateway.send_request(request("GET", "/v1/models")).json
    assert [(m["id"], m.get("name", m["id"]), m["owned_by"]) for m in models["data"]] == [
        (MODEL, MODEL, "llamacpp")
    ]
    assert models["data"][0]["context_length"] == CONTEXT

    body = {
        "stream": True,
        "model": MODEL,
        "messages": MESSAGES,
        "stream_options": {"include_usage": True},
    }
    response = post(gateway, body, "X-OpenWebUI-User-Id: 1", "X-OpenWebUI-Chat-Id: 2")

    assert response["content-type"] == "text/event-stream"
    assert deltas(response.body) == TEXT


@pytest.mark.parametrize("task", TASKS)
def test_open_webui_s_background_requests_get_a_message(gateway: GatewayProcess, task: str) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"### Task:\n{task}\n### Chat History:\n..."}],
        "stream": False,
        "max_completion_tokens": 1000,
    }

    assert post(gateway, body).json["choices"][0]["message"]["content"] == TEXT


def test_librechat_fetches_the_models_chats_and_requests_a_title(gateway: GatewayProcess) -> None:
    models = gateway.send_request(request("GET", "/v1/models", "User-Agent: axios/1.12")).json
    assert [m["id"] for m in models["data"]] == [MODEL]
    body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "user": "68a"}

    assert deltas(post(gateway, body | {"stream": True}).body) == TEXT
    assert post(gateway, body).json["choices"][0]["message"]["content"] == TEXT


def test_a_conversation_that_is_too_long_is_shown_with_the_gateway_s_sentence(
    engine: AgentEngine, gateway: GatewayProcess
) -> None:
    engine.faults.append(Fault.OVERFLOWS)
    response = post(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True})

    assert response.status == 400
    assert f"maximum context length is {CONTEXT} tokens" in response.json["error"]["message"]
    assert response.json["error"]["code"] == "context_length_exceeded"
    assert KEY not in response.body.decode()
