"""How fast a known conversation continues: the order of requests, and the results."""

from __future__ import annotations

import asyncio

import pytest

from llama_gguf.errors import UserError
from llama_gguf_bench import resume
from llama_gguf_bench.connection import parse_target
from llama_gguf_bench.options import Options
from llama_gguf_bench.records import Record
from llama_gguf_bench.resume import AGAIN, NEW, RESUMED, Step
from tests.support.engines import ChatEngine

OPTIONS = Options(loads=(), warmup=0.0, prompt_tokens=(40,), requests=2)


def measure(engine: ChatEngine) -> tuple[list[Step], list[int], list[str]]:
    """The steps, the number of requests at the restart, and what was reported."""
    restarts: list[int] = []
    reported: list[str] = []

    async def restart() -> None:
        restarts.append(len(engine.requests))

    target = parse_target(engine.url)
    _, steps = asyncio.run(
        resume.run(
            target,
            OPTIONS,
            None,
            restart=restart,
            progress=lambda name, share: reported.append(name),
        )
    )
    return steps, restarts, reported


def test_the_same_conversations_are_sent_before_and_after_a_stop(engine: ChatEngine) -> None:
    steps, restarts, reported = measure(engine)

    messages = [body["messages"] for body in engine.requests[2:]]  # after two for the scale
    assert messages[0] != messages[1]
    assert messages == messages[:2] * 3
    assert restarts == [2 + 4]
    assert reported == [step.name for step in steps] == [NEW, AGAIN, RESUMED]


def test_a_request_that_fails_ends_it(engine: ChatEngine) -> None:
    engine.status, engine.good = 503, 4

    with pytest.raises(UserError, match="a request has failed: status 503"):
        measure(engine)


def step(name: str, seconds: float, cached: int | None) -> Step:
    record = Record(0.0, 0.0, first=seconds, prompt_tokens=2000, cached_tokens=cached)
    return Step(name, [record])


def test_the_result_compares_a_known_conversation_with_a_new_one() -> None:
    steps = [step(NEW, 8.0, 0), step(AGAIN, 0.5, 1999), step(RESUMED, 0.8, 1995)]

    assert resume.rows(steps) == [
        ("new", "8000", "2000", "2000"),
        ("again", "500", "2000", "1"),
        ("after a stop", "800", "2000", "5"),
    ]
    assert "0.10 times" in resume.verdict(steps)
    assert [each["computed_tokens"] for each in resume.as_json(steps)] == [2000, 1, 5]
    assert resume.as_csv(steps).splitlines()[-1] == "after a stop,800,2000,5"


def test_a_server_that_does_not_report_cached_tokens_shows_none() -> None:
    assert resume.rows([step(NEW, 1.0, None)]) == [("new", "1000", "2000", "-")]
