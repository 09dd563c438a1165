"""PROMPT_CACHE with real processes: conversations that continue after the engine has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.cli.main import main
from tests.support.keys import KEY
from tests.support.serve import CHAT, Serve

pytestmark = pytest.mark.processes

QUESTION = b'{"messages": "%b"}' % (b"a" * 280)
OTHER = b'{"other": "%b"}' % (b"b" * 280)
OTHER_KEY = "sk-otherotherotherother"


def start(serve: Serve, **environ: str) -> None:
    serve.start_ready(PROMPT_CACHE="on", **environ)
    serve.until(lambda: "digest" in notes(serve))


def notes(serve: Serve) -> str:
    path = serve.data / "cache" / "models.json"
    return path.read_text() if path.exists() else ""


def computed(serve: Serve, body: bytes = QUESTION, key: str = KEY) -> int:
    response = serve.send_request(CHAT, body, key=key)
    assert response.status == 200
    return int(response.json["timings"]["prompt_n"])


def states(serve: Serve) -> list[Path]:
    return sorted((serve.data / "cache").glob("*.state"))


def test_a_known_conversation_is_not_computed_again_after_a_stop(serve: Serve) -> None:
    start(serve)
    assert computed(serve) == len(QUESTION)
    assert serve.stop() == 0
    assert len(states(serve)) == 1
    start(serve)

    assert computed(serve) == 1
    metrics = serve.send_request("/prometheus/metrics", key="").body.decode()
    assert 'llama_gguf_prompt_cache_restores_total{result="success"} 1.0' in metrics
    assert serve.send_request("/health", key="").json["prompt_cache"]["files"] == 1
    assert serve.stop() == 0
    assert len(states(serve)) == 1


def test_a_revoked_key_takes_its_conversations_along(serve: Serve) -> None:
    serve.add_key(OTHER_KEY, "other")
    start(serve, IDLE_STOP="1")
    computed(serve)
    serve.until(lambda: len(states(serve)) == 1 and not serve.engine_pid)
    assert computed(serve, OTHER, OTHER_KEY) > 250  # the engine is started again
    serve.until(lambda: len(states(serve)) == 2)
    keys = ["--file", str(serve.keys_file)]
    assert main(["keys", "remove", "other", *keys], {"DATA_DIR": str(serve.data)}) == 0
    serve.until(lambda: len(states(serve)) == 1)
    assert serve.stop() == 0
    start(serve)

    assert computed(serve) == 1
    assert computed(serve, OTHER) > 250
