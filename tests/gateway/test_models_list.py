"""The list of models: as clients read it, in every state of the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from tests.support.fakes import NewRig, Rig
from tests.support.messages import Response, code_of, request

FACTS = {
    "parameters": 134515008,
    "quantization": "Q4_1",
    "size_bytes": 96,
    "trained_context": 8192,
    "context": 4096,
}
REPORTED: dict[str, Any] = {
    "models": [{"name": "tiny", "model": "tiny", "capabilities": ["completion"], "details": {}}],
    "object": "list",
    "data": [
        {
            "id": "tiny",
            "aliases": ["tiny"],
            "tags": [],
            "object": "model",
            "created": 1796020469,
            "owned_by": "llamacpp",
            "meta": {"n_vocab": 49152, "n_ctx": 1024, "n_ctx_train": 8192, "n_params": 134515008},
        }
    ],
}
"""As build 10068 has it."""
ANTHROPIC = "anthropic-version: 2023-06-01"


def set_status(rig: Rig, state: ChildState, **facts: Any) -> None:
    rig.replica.tracker.update(EngineStatus(state, since=7.0, model="tiny", **facts))


def get(rig: Rig, path: str = "/v1/models", *fields: str, method: str = "GET") -> Response:
    return rig.send_request(request(method, path, *fields)).response


def ready(rig: Rig) -> None:
    set_status(rig, ChildState.READY, model_list=REPORTED, request_tokens=1024, facts=FACTS)


@pytest.mark.parametrize("state", ChildState)
@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/tiny"])
def test_models_are_listed_in_every_state_and_nothing_is_woken(
    path: str, state: ChildState, rig: Rig
) -> None:
    woken: list[None] = []
    rig.fleet.on_engine_requested = lambda: woken.append(None)
    set_status(rig, state, facts=FACTS)

    found = get(rig, path).json

    assert (found if path.endswith("tiny") else found["data"][0])["id"] == "tiny"
    assert (rig.dials, rig.requests, woken) == ([], [], [])


def test_before_the_engine_has_been_ready_the_list_has_what_the_models_header_has(rig: Rig) -> None:
    set_status(rig, ChildState.LOADING, facts=FACTS)

    assert get(rig).json == {
        "object": "list",
        "data": [
            {
                "id": "tiny",
                "object": "model",
                "created": 7,
                "owned_by": "llamacpp",
                "aliases": ["tiny"],
                "tags": [],
                "meta": {
                    "n_ctx_train": 8192,
                    "n_params": 134515008,
                    "size": 96,
                    "ftype": "Q4_1",
                    "n_ctx": 4096,
                },
                "context_length": 4096,
                "max_model_len": 4096,
            }
        ],
    }


@pytest.mark.parametrize("state", [ChildState.READY, ChildState.ASLEEP, ChildState.BACKOFF])
def test_what_the_engine_has_reported_stays(state: ChildState, rig: Rig) -> None:
    ready(rig)
    engine = rig.replica.tracker
    engine.update(engine.status.moved(state, 9.0))
    (reported,) = REPORTED["data"]

    assert get(rig).json == REPORTED | {
        "data": [reported | {"context_length": 1024, "max_model_len": 1024}]
    }


def test_the_context_is_that_of_one_request(rig: Rig) -> None:
    set_status(rig, ChildState.READY, model_list=REPORTED, request_tokens=512)

    (model,) = get(rig).json["data"]
    assert model["meta"]["n_ctx"] == model["context_length"] == 512
    assert model["meta"]["n_vocab"] == 49152


def test_what_was_reported_of_another_model_is_not_shown(rig: Rig) -> None:
    other = {"data": [{"id": "other", "meta": {"n_vocab": 1}}], "models": []}
    set_status(rig, ChildState.LOADING, model_list=other, facts=FACTS)

    (model,) = get(rig).json["data"]
    assert model["id"] == "tiny"
    assert "n_vocab" not in model["meta"]


def test_an_engine_of_several_models_keeps_their_contexts(rig: Rig) -> None:
    several = {"data": [{"id": "a", "meta": {"n_ctx": 1}}, {"id": "b", "meta": {"n_ctx": 2}}]}
    set_status(rig, ChildState.READY, model_list=several, request_tokens=512)

    assert get(rig).json["data"] == several["data"]
    assert get(rig, "/v1/models/b").json == several["data"][1]


@pytest.mark.parametrize(
    "reported",
    [
        {"data": 5, "models": 5},
        {"data": [5, {"id": 5}, {}], "models": [5]},
        {"data": [{"id": "tiny", "meta": 5, "created": 1 << 80}], "models": {}},
    ],
)
@pytest.mark.parametrize("fields", [(), (ANTHROPIC,)])
def test_a_list_of_an_odd_form_does_no_harm(
    reported: dict[str, Any], fields: tuple[str, ...], rig: Rig
) -> None:
    set_status(rig, ChildState.READY, model_list=reported, request_tokens=512)

    (model,) = get(rig, "/v1/models", *fields).json["data"]
    assert model["id"] == "tiny"


def test_a_gateway_that_has_never_seen_its_engine_lists_no_model(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.replica.tracker.update(EngineStatus(ChildState.UNREACHABLE, since=0.0))

    assert get(rig).json == {"object": "list", "data": []}
    assert get(rig, "/v1/models", ANTHROPIC).json == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_aliases_are_listed_behind_the_model_with_its_facts(new_rig: NewRig) -> None:
    rig = new_rig(model_aliases=("gpt-4o", "tiny", "claude-sonnet"))
    ready(rig)
    found = get(rig).json

    assert [model["id"] for model in found["data"]] == ["tiny", "gpt-4o", "claude-sonnet"]
    assert [model["model"] for model in found["models"]] == ["tiny", "gpt-4o", "claude-sonnet"]
    assert {model["meta"]["n_params"] for model in found["data"]} == {134515008}
    assert get(rig, "/v1/models/gpt-4o").json["context_length"] == 1024


def test_a_model_that_is_not_served_is_404_in_either_envelope(rig: Rig) -> None:
    ready(rig)
    openai = get(rig, "/v1/models/gpt-5")
    anthropic = get(rig, "/v1/models/gpt-5", ANTHROPIC)

    assert openai.status == anthropic.status == 404
    assert code_of(openai) == "model_not_found"
    assert openai.json["error"]["message"] == "The model 'gpt-5' does not exist."
    assert anthropic.json["error"] == {
        "type": "not_found_error",
        "message": "The model 'gpt-5' does not exist.",
    }


def test_a_name_may_have_a_slash_escaped_or_not(new_rig: NewRig) -> None:
    rig = new_rig(model_aliases=("owner/name",))
    ready(rig)

    assert get(rig, "/v1/models/owner%2Fname").json["id"] == "owner/name"
    assert get(rig, "/v1/models/owner/name").json["id"] == "owner/name"


def test_clients_of_anthropic_get_a_list_of_anthropics_form(new_rig: NewRig) -> None:
    rig = new_rig(model_aliases=("claude-sonnet",))
    ready(rig)
    found = get(rig, "/v1/models?limit=20", ANTHROPIC).json
    model = {
        "type": "model",
        "id": "tiny",
        "display_name": "tiny",
        "created_at": "2026-11-30T06:34:29Z",
        "lifecycle": "active",
        "max_input_tokens": 1024,
        "max_tokens": 1024,
    }

    assert found == {
        "data": [model, model | {"id": "claude-sonnet", "display_name": "claude-sonnet"}],
        "has_more": False,
        "first_id": "tiny",
        "last_id": "claude-sonnet",
    }
    assert get(rig, "/v1/models/tiny", ANTHROPIC).json == model


def test_the_list_needs_a_key_and_costs_it_nothing(rig: Rig) -> None:
    ready(rig)

    assert rig.send_request(request("GET", "/v1/models", key=None)).response.status == 401
    response = get(rig)
    assert response["x-ratelimit-remaining-requests"] == "1000"
    assert len(json.dumps(response.json)) > 0


def test_a_head_request_has_the_length_of_the_list(rig: Rig) -> None:
    ready(rig)
    head = rig.send_request(request("HEAD", "/v1/models")).received

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: %d\r\n" % len(get(rig).body) in head
    assert head.endswith(b"\r\n\r\n")
