"""Conversations at two real engines: each turn goes to the one that has its prompt in its cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.conftest import DEADLINE_SECONDS, Served, start, stop
from tests.support.clients import send_request
from tests.support.processes import free_ports, row_of_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS: Final = {"REPLICAS": "2", "PARALLEL": "2"}


@pytest.fixture(scope="module")
def two_replicas(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    assert model_file.is_file()
    port, health = free_ports(2)
    served = start(tmp_path_factory.mktemp("data"), SETTINGS, (port, health, row_of_ports(3)))
    try:
        served.until(lambda: served.output.count("The model is ready") == 2, "two replicas")
        yield served
    finally:
        stop(served)


@dataclass(frozen=True)
class Dialect:
    """How a conversation is sent, and what its response is made of.

    Args:
        path: of the request.
        body: of a request, from the texts so far: of the user, the model, the user, and so on.
        reply: the text of a response.
        tokens: of its prompt: all, and those that were in the cache.
    """

    path: str
    body: Callable[[list[str]], dict[str, Any]]
    reply: Callable[[dict[str, Any]], str]
    tokens: Callable[[dict[str, Any]], tuple[int, int]]


def messages(so_far: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(so_far)]


def items(so_far: list[str]) -> list[dict[str, Any]]:
    kinds = ("input_text", "output_text")
    return [
        {
            "type": "message",
            "role": each["role"],
            "content": [{"type": kinds[n % 2], "text": each["content"]}],
        }
        for n, each in enumerate(messages(so_far))
    ]


def of_openai(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


DIALECTS: Final = {
    "chat": Dialect(
        "/v1/chat/completions",
        lambda so_far: {"messages": messages(so_far), "max_tokens": 8},
        lambda made: str(made["choices"][0]["message"]["content"]),
        lambda made: of_openai(made["usage"]),
    ),
    "completions": Dialect(
        "/v1/completions",
        lambda so_far: {"prompt": "\n".join(so_far), "max_tokens": 8},
        lambda made: str(made["choices"][0]["text"]),
        lambda made: of_openai(made["usage"]),
    ),
    "messages": Dialect(
        "/v1/messages",
        lambda so_far: {"messages": messages(so_far), "max_tokens": 8},
        lambda made: str(made["content"][0]["text"]),
        lambda made: (
            made["usage"]["input_tokens"] + made["usage"]["cache_read_input_tokens"],
            made["usage"]["cache_read_input_tokens"],
        ),
    ),
    "responses": Dialect(
        "/v1/responses",
        lambda so_far: {"input": items(so_far), "max_output_tokens": 8},
        lambda made: str(made["output"][0]["content"][0]["text"]),
        lambda made: (
            made["usage"]["input_tokens"],
            made["usage"]["input_tokens_details"]["cached_tokens"],
        ),
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_each_turn_of_a_conversation_finds_its_prompt_in_the_cache(
    two_replicas: Served, name: str
) -> None:
    dialect = DIALECTS[name]
    # As many conversations as slots, so that each has one where it began.
    conversations = [[f"Story {n} of {name}. " + f"The number {n} came. " * 40] for n in range(4)]
    computed: list[int] = []

    for turn in range(4):
        # In another order each time: taking turns would bring them elsewhere.
        for so_far in conversations if turn % 2 else reversed(conversations):
            response = send_request(
                two_replicas.port,
                dialect.path,
                json.dumps(dialect.body(so_far)).encode(),
                key=two_replicas.key,
                seconds=DEADLINE_SECONDS,
            )
            assert response.status == 200, response.body
            total, cached = dialect.tokens(response.json)
            assert total > 200
            if turn:
                computed.append(total - cached)
            so_far += [dialect.reply(response.json), f"And then, after {turn}?"]

    assert max(computed) < 60
    responses = two_replicas.get("/metrics")[1]["llama_gguf_replica_responses"]
    assert all(each["value"] >= 8 for each in responses), responses
