"""Errors as events, in the form in which the clients of each dialect recognise them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import (
    BackendUnavailable,
    EngineCrashed,
    GatewayError,
    QueueTimeout,
    UpstreamError,
    UpstreamTimeout,
)
from llama_gguf.http1.error_events import error_event, refusal_event
from llama_gguf.http1.local_response import envelope
from llama_gguf.http1.routes import Dialect

OPENING = b'event: response.created\ndata: {"response":{"id":"resp_8aF","object":"response"}}\n\n'


def parsed(event: bytes | None) -> tuple[str, Any]:
    """The name of the event, and its data."""
    assert event is not None
    *names, data = event.removesuffix(b"\n\n").split(b"\n")
    return b"".join(names).decode(), json.loads(data.removeprefix(b"data: "))


def test_clients_of_chat_get_the_envelope_as_the_data_of_an_event_without_a_name() -> None:
    error = UpstreamError("gone")

    event = error_event(error, Dialect.OPENAI, request_id="r")

    assert event == b"data: " + envelope(error, Dialect.OPENAI, request_id="r") + b"\n\n"


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError("gone"),
        BackendUnavailable("gone", retry_after=1),
        QueueTimeout("gone", retry_after=1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_temporary_is_an_overload_to_anthropics_clients(error: GatewayError) -> None:
    name, data = parsed(error_event(error, Dialect.ANTHROPIC, request_id="r"))

    assert name == "event: error"
    assert data["type"] == "error"
    assert data["error"] == {"type": "overloaded_error", "message": "gone"}


@pytest.mark.parametrize(
    ("error", "type_"),
    [(EngineCrashed("twice"), "api_error"), (UpstreamTimeout("slow"), "timeout_error")],
)
def test_what_should_not_be_sent_again_is_no_overload(error: GatewayError, type_: str) -> None:
    _, data = parsed(error_event(error, Dialect.ANTHROPIC, request_id="r"))

    assert data["error"]["type"] == type_


@pytest.mark.parametrize(
    ("error", "code"),
    [(UpstreamError("gone"), "server_error"), (EngineCrashed("gone"), "invalid_prompt")],
)
def test_clients_of_responses_get_a_failed_response_with_the_stream_s_id(
    error: GatewayError, code: str
) -> None:
    event = error_event(error, Dialect.RESPONSES, request_id="r", opening=OPENING)

    name, data = parsed(event)
    assert name == "event: response.failed"
    assert data["type"] == "response.failed"
    assert data["response"]["id"] == "resp_8aF"
    assert data["response"]["status"] == "failed"
    assert data["response"]["error"] == {"code": code, "message": "gone"}


def test_a_failed_response_that_had_no_id_has_that_of_the_request() -> None:
    _, data = parsed(error_event(UpstreamError("gone"), Dialect.RESPONSES, request_id="req-1"))

    assert data["response"]["id"] == "resp_req-1"


REFUSAL = {"error": {"code": 400, "message": "bad grammar", "type": "invalid_request_error"}}
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


def test_a_refusal_of_the_engine_keeps_its_content_for_clients_of_chat() -> None:
    event = refusal_event(json.dumps(REFUSAL).encode(), Dialect.OPENAI, request_id="r")

    assert parsed(event) == ("", REFUSAL)


@pytest.mark.parametrize(
    ("content", "type_"), [(REFUSAL, "invalid_request_error"), (LOADING, "overloaded_error")]
)
def test_a_refusal_of_the_engine_has_anthropics_form_for_its_clients(
    content: dict[str, dict[str, Any]], type_: str
) -> None:
    event = refusal_event(json.dumps(content).encode(), Dialect.ANTHROPIC, request_id="r")

    name, data = parsed(event)
    assert (name, data["type"]) == ("event: error", "error")
    assert data["error"]["type"] == type_
    assert data["error"]["message"] == content["error"]["message"]


def test_a_refusal_in_anthropics_form_is_left_as_it_is() -> None:
    content = {"type": "error", "error": {"type": "not_found_error", "message": "no"}}

    event = refusal_event(json.dumps(content).encode(), Dialect.ANTHROPIC, request_id="r")

    assert parsed(event) == ("event: error", content)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"{}", b"[" * 100_000])
def test_what_is_no_error_becomes_no_event(body: bytes, dialect: Dialect) -> None:
    assert refusal_event(body, dialect, request_id="r") is None


@pytest.mark.parametrize("body", [b'{"error":"no"}', b'{"error":null}', b'{"error":{"code":"x"}}'])
@pytest.mark.parametrize("dialect", Dialect)
def test_an_error_of_another_shape_is_an_event_all_the_same(body: bytes, dialect: Dialect) -> None:
    _, data = parsed(refusal_event(body, dialect, request_id="r"))

    assert "error" in (data["response"] if dialect is Dialect.RESPONSES else data)


@given(message=st.text(), request_id=st.text(), dialect=st.sampled_from(Dialect))
def test_no_message_breaks_out_of_its_event(
    message: str, request_id: str, dialect: Dialect
) -> None:
    event = error_event(UpstreamError(message), dialect, request_id=request_id)

    _, data = parsed(event)
    content = data["response"] if dialect is Dialect.RESPONSES else data
    assert content["error"]["message"] == message
    assert b"\r" not in event
