from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from llama_gguf_bench.connection import Connections, parse_target
from llama_gguf_bench.server import Server, Watch, calibrated, get, look, model_name, queue_wait
from tests.support.engines import ChatEngine

T = TypeVar("T")

MODELS = {"data": [{"id": "tiny", "owned_by": "llamacpp", "meta": {"n_params": 7}}]}
PROPS = {
    "build_info": "b1-abc",
    "total_slots": 4,
    "model_path": "/models/tiny.gguf",
    "default_generation_settings": {"n_ctx": 256},
}
HEALTH = {"version": "1.2", "slots": {"used": 3, "total": 8}, "queue": {"length": 5, "size": 256}}


def with_engine(engine: ChatEngine, work: Callable[[Connections], Awaitable[T]]) -> T:
    async def run() -> T:
        connections = Connections(parse_target(engine.url), lambda: 0.0)
        try:
            return await work(connections)
        finally:
            connections.close()

    return asyncio.run(run())


def test_llama_server_reports_model_build_slots_and_context(engine: ChatEngine) -> None:
    engine.gets = {"/v1/models": MODELS, "/props": PROPS, "/health": {"status": "ok"}}

    found = with_engine(engine, look)

    assert (found.models, found.engine, found.slots, found.context) == (
        ("tiny",), "b1-abc", 4, 256,
    )  # fmt: skip
    assert found.is_llama_cpp
    assert found.gateway == ""
    assert found.model == {"n_params": 7}


def test_our_gateway_reports_its_version_and_slots(engine: ChatEngine) -> None:
    engine.gets = {"/v1/models": MODELS, "/props": PROPS, "/health": HEALTH}

    found = with_engine(engine, look)

    assert (found.gateway, found.slots) == ("1.2", 8)


def test_another_server_may_report_nothing(engine: ChatEngine) -> None:
    engine.gets = {}

    assert with_engine(engine, look) == Server()


@pytest.mark.parametrize(
    "document",
    [
        {"/v1/models": {"data": 3}},
        {"/v1/models": {"data": [3, {}]}},
        {"/v1/models": {"data": [{"id": "x", "meta": 3}]}, "/props": {"total_slots": "x"}},
        {"/props": {"default_generation_settings": 3}},
        {"/health": {"version": "1", "slots": 3}},
    ],
)
def test_facts_of_any_shape_are_tolerated(engine: ChatEngine, document: dict[str, Any]) -> None:
    engine.gets = document

    assert with_engine(engine, look).slots is None


def test_the_report_contains_no_folder_of_the_server() -> None:
    assert "path" not in str(Server(model_path="/home/alice/tiny.gguf").as_json())


def test_a_missing_path_gives_no_facts(engine: ChatEngine) -> None:
    assert with_engine(engine, lambda c: get(c, "/nothing")) == {}


def test_slots_and_queue_are_observed_and_the_wait_reported(engine: ChatEngine) -> None:
    waits = {"count": 10, "sum": 1.0}
    engine.gets = {"/health": HEALTH, "/metrics": {"llama_gguf_queue_wait_seconds": waits}}

    async def scenario(connections: Connections) -> dict[str, Any]:
        watch = Watch(connections)
        await watch.begin()
        watching = asyncio.get_running_loop().create_task(watch.run())
        while not watch.used:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0)
        watching.cancel()
        engine.gets["/metrics"] = {"llama_gguf_queue_wait_seconds": {"count": 14, "sum": 3.0}}
        return await watch.end()

    assert with_engine(engine, scenario) == {
        "slots_used_mean": 3.0,
        "queue_max": 5,
        "queue_wait_mean_seconds": 0.5,
    }


@pytest.mark.parametrize("pair", [(None, None), ({}, {}), ({"count": 1, "sum": 1.0},) * 2])
def test_without_two_different_readings_there_is_no_wait(pair: tuple[Any, Any]) -> None:
    assert queue_wait(*pair) == {}


def test_the_model_is_the_requested_one_or_the_servers_first() -> None:
    assert model_name(Server(models=("a", "b")), "c") == "c"
    assert model_name(Server(models=("a", "b")), "") == "a"
    assert model_name(Server(), "") == "default"


def test_prompt_tokens_are_read_from_usage() -> None:
    assert calibrated([{"usage": {"prompt_tokens": 7}}, {"usage": 3}, {}]) == [7, None, None]
