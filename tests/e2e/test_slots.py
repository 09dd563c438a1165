"""The real engine's context: what one request may use of it, and that none ends another."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import engine_argv, listen_flags
from llama_gguf.engines.locate import Engine, locate
from llama_gguf.models.model_file import read_model
from llama_gguf.supervisor import division
from tests.e2e.conftest import DEADLINE_SECONDS, Served, start, stop
from tests.support.clients import send_request
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import Response
from tests.support.processes import free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"

Start = Callable[[Mapping[str, str]], Served]


@pytest.fixture
def serve(model_file: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a server that two keys may use."""
    assert model_file.is_file()
    keys = tmp_path / "api_keys.txt"
    keys.write_text(f"alice:{KEY}\nbob:{OTHER_KEY}\n")
    keys.chmod(0o600)

    with ExitStack() as stack:

        def begin(settings: Mapping[str, str]) -> Served:
            served = start(tmp_path, settings)
            stack.callback(stop, served)
            served.until_ready()
            return served

        yield begin


def chat(served: Served, *, key: str = KEY, **members: Any) -> Response:
    body = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, **members}
    return send_request(
        served.port, CHAT, json.dumps(body).encode(), key=key, seconds=DEADLINE_SECONDS
    )


def at_once(*requests: Callable[[], Response]) -> Sequence[Response]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return [running.result() for running in [pool.submit(request) for request in requests]]


def outcome(response: Response, tokens: str = "completion_tokens") -> tuple[int, str, Any]:
    """The status, and how the response ended after how many tokens, or else the error."""
    content = response.json
    if response.status != 200:
        return response.status, content["error"]["type"], content["error"]["message"]
    return 200, content["choices"][0]["finish_reason"], content["usage"][tokens]


def test_long_requests_of_one_key_do_not_end_one_another_nor_that_of_another_key(
    serve: Start,
) -> None:
    served = serve({"CTX": "1024"})

    found = at_once(
        *[lambda: chat(served, max_tokens=900)] * 3,
        lambda: chat(served, key=OTHER_KEY, max_tokens=16),
    )

    assert list(map(outcome, found)) == [*[(200, "length", 900)] * 3, (200, "length", 16)]


def test_requests_without_a_limit_run_at_once_and_each_ends_at_its_own_part(serve: Start) -> None:
    served = serve({"CTX": "1024", "PARALLEL": "4"})

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(chat, served) for _ in range(4)]
        served.until(lambda: served.get("/health")[1]["slots"]["used"] == 4, "four at the engine")
        found = [each.result() for each in running]

    assert [outcome(r, "total_tokens") for r in found] == [(200, "length", 256)] * 4


def test_a_context_that_is_left_to_llama_server_is_reported_as_it_decided(serve: Start) -> None:
    served = serve({"CTX": "auto", "NGL": "auto"})

    assert served.get("/health")[1]["model"]["context"] == 8192  # the model's, which fits


def test_a_prompt_that_is_too_long_is_refused_and_ends_no_other(serve: Start) -> None:
    served = serve({"CTX": "1024", "PARALLEL": "4"})
    long = [{"role": "user", "content": "word " * 300}]

    *others, refused = at_once(
        *[lambda: chat(served, max_tokens=100)] * 3, lambda: chat(served, messages=long)
    )

    assert list(map(outcome, others)) == [(200, "length", 100)] * 3
    assert outcome(refused)[:2] == (400, "exceed_context_size_error")
    error = refused.json["error"]
    assert error["n_ctx"] == 256
    assert error["n_prompt_tokens"] > 256


def test_choices_count_as_requests_of_their_own(serve: Start) -> None:
    served = serve({"CTX": "1024", "PARALLEL": "2"})

    both, more, other = at_once(
        lambda: chat(served, n=2, max_tokens=300),
        lambda: chat(served, n=3, max_tokens=8),
        lambda: chat(served, key=OTHER_KEY),
    )

    assert outcome(both)[0] == 200
    assert [choice["finish_reason"] for choice in both.json["choices"]] == ["length"] * 2
    assert outcome(more)[:2] == (400, "invalid_request_error")
    assert outcome(other, "total_tokens") == (200, "length", 512)


def test_check_health_and_the_engine_report_the_same_context(
    serve: Start, model_file: Path
) -> None:
    served = serve({"CTX": "16384"})
    facts = read_model(str(model_file)).facts

    _, found = division.divided(Settings.of(ctx=16384).engine, {}, facts)
    health, props = served.get("/health")[1], served.get("/props", backend=True)[1]

    assert health["model"]["context"] == found.request_tokens == 4096
    assert props["default_generation_settings"]["n_ctx"] == 4096
    assert health["slots"]["total"] == found.slots == props["total_slots"] == 4
    assert division.description(found) in served.output


@pytest.fixture(scope="module")
def engine() -> Engine:
    return locate("", "", environ=os.environ)


@pytest.mark.parametrize(
    "chosen",
    [
        {"ctx": 1024},
        {"ctx": 0},
        {"ctx": 600, "parallel": 4},
        {"ctx": 1281, "parallel": 5},
        {"ctx": 20000, "parallel": 2},
        {"ctx": 2048, "extra_args": "-np 3"},
        {"ctx": 2048, "extra_args": "--kv-unified"},
        {"ctx": 2048, "extra_args": "--no-kv-unified"},
        {"ctx": 2048, "parallel": 4, "extra_args": "--embeddings"},
    ],
    ids=str,
)
def test_the_calculated_context_is_that_of_the_engine(
    engine: Engine, model_file: Path, chosen: dict[str, Any]
) -> None:
    settings = Settings.of(port_backend=free_port(), **chosen)
    resolved, found = division.divided(settings.engine, {}, read_model(str(model_file)).facts)
    argv = engine_argv(engine.path, resolved, model_path=str(model_file), alias="m")
    argv += listen_flags(EngineAddress.of(settings.upstream))
    process = subprocess.Popen(
        argv,
        env={**os.environ, **engine.environment_changes},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        props = until(lambda: _props(settings.upstream.port_backend), lambda: str(argv))
    finally:
        process.kill()
        process.wait()

    assert props["total_slots"] == found.slots
    assert props["default_generation_settings"]["n_ctx"] == found.request_tokens


def _props(port: int) -> dict[str, Any]:
    """Empty until the engine is ready."""
    try:
        response = send_request(port, "/props", key="")
    except OSError:
        return {}
    return response.json if response.status == 200 else {}
