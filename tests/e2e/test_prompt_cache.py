"""PROMPT_CACHE: a known conversation continues at once after the engine was stopped."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_gguf.prompt_cache import model_digest
from tests.e2e.conftest import DEADLINE_SECONDS, Served, start, stop
from tests.support import tiny_models
from tests.support.clients import Wire

MAX_COMPUTED = 5
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Answer:
    computed: int
    cached: int
    text: str
    seconds: float


def ask(served: Served, topic: str = "history", words: int = 80) -> Answer:
    """A chat at temperature 0."""
    content = f"Here is a list about {topic}: " + " ".join(f"w{n}" for n in range(words))
    body = {
        "messages": [{"role": "user", "content": content + ". Say something about it."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    data = json.dumps(body).encode()
    with Wire(served.address, seconds=DEADLINE_SECONDS) as wire:
        began = time.monotonic()
        wire.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (served.key.encode(), len(data), data)
        )
        response = wire.response()
    assert response.status == 200, response.body
    found = json.loads(response.body)
    timings = found["timings"]
    text = found["choices"][0]["message"]["content"]
    seconds = time.monotonic() - began
    return Answer(timings["prompt_n"], timings["cache_n"], text, seconds)


def files(served: Served) -> list[Path]:
    return sorted((served.data_dir / "cache").glob("*.state"))


def engine_state(served: Served) -> str:
    status, health = served.get("/health")
    return str(health["engine"]["state"]) if health else str(status)


@contextmanager
def serving(data_dir: Path, model: Path, **settings: str) -> Iterator[Served]:
    chosen = {"PROMPT_CACHE": "on", "CTX": "4096", "PARALLEL": "2", **settings}
    served = start(data_dir, chosen, model=str(model))
    try:
        served.until_ready()
        served.until(lambda: knows_digest(served, model), "the digest of the model")
        yield served
    finally:
        stop(served)


def knows_digest(served: Served, model: Path) -> bool:
    path = served.data_dir / "cache" / "models.json"
    return path.exists() and model_digest.identity([str(model)]) in path.read_text()


def test_a_conversation_continues_after_an_idle_stop_and_a_rolling_restart(
    model_file: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, model_file, IDLE_STOP="2") as served:
        assert ask(served).computed > 200
        before = ask(served)
        served.until(lambda: engine_state(served) == "asleep", "an engine that is asleep")
        woken = ask(served)
        engine = served.child("llama-server")
        served.process.send_signal(signal.SIGUSR2)
        served.until(lambda: "Rolling restart complete" in served.output, "a rolling restart")
        replaced = ask(served)
        assert served.child("llama-server") != engine

    assert woken.computed <= MAX_COMPUTED
    assert replaced.computed <= MAX_COMPUTED
    assert woken.text == replaced.text == before.text


def test_a_conversation_continues_after_a_stop_unless_one_weight_has_changed(
    model_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(model_file.read_bytes())
    with serving(tmp_path, copy) as served:
        cold, before = ask(served), ask(served)
    assert cold.computed > 200
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(served)} == {0o600}
    with serving(tmp_path, copy) as served:
        after = ask(served)
    assert after.computed <= MAX_COMPUTED
    assert after.text == before.text
    with copy.open("r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)
        file.seek(-1000, 2)
        file.write(bytes([byte[0] ^ 1]))
    with serving(tmp_path, copy) as served:
        assert ask(served).computed == cold.computed


def test_a_model_that_cannot_use_restored_prompts_is_left_alone(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.gguf"
    tiny_models.write("gemma3", tiny)  # a sliding window
    template = {"EXTRA_ARGS": "--chat-template chatml"}
    with serving(tmp_path, tiny, **template) as served:
        ask(served)
    assert files(served)
    with serving(tmp_path, tiny, **template) as served:
        verdict = "PROMPT_CACHE is switched off for this model"
        served.until(lambda: verdict in served.output, "the verdict about the model")
        ask(served)
    assert not files(served)
