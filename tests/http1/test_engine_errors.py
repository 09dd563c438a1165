"""Errors of llama-server that are corrected, as builds 10068 and 11549 send them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.engine_errors import MAX_BYTES, corrected
from llama_gguf.http1.routes import Dialect

OVERFLOW = (
    b'{"error":{"code":400,"message":"request (6031 tokens) exceeds the available context size '
    b'(1024 tokens), try increasing it","type":"exceed_context_size_error",'
    b'"n_prompt_tokens":6031,"n_ctx":1024}}'
)
NOT_JSON = (
    b'{"error":{"code":500,"message":"[json.exception.parse_error.101] parse error at line 1, '
    b'column 2: syntax error","type":"server_error"}}'
)


@pytest.mark.parametrize("dialect", [Dialect.OPENAI, Dialect.RESPONSES])
def test_openais_clients_get_openais_code_and_sentence_and_the_engines_figures(
    dialect: Dialect,
) -> None:
    found = corrected(400, OVERFLOW, dialect, request_id="r")
    assert found is not None
    status, body = found

    assert status == 400
    assert json.loads(body)["error"] == {
        "message": "This model's maximum context length is 1024 tokens. However, your request "
        "(6031 tokens) exceeds the available context size.",
        "type": "exceed_context_size_error",
        "param": None,
        "code": "context_length_exceeded",
        "n_prompt_tokens": 6031,
        "n_ctx": 1024,
    }


def test_anthropics_clients_get_anthropics_envelope_and_sentence() -> None:
    found = corrected(400, OVERFLOW, Dialect.ANTHROPIC, request_id="r")
    assert found is not None
    content = json.loads(found[1])

    assert (content["type"], content["request_id"]) == ("error", "r")
    assert content["error"]["type"] == "invalid_request_error"
    assert content["error"]["message"] == "prompt is too long: 6031 tokens > 1024 maximum"
    assert (content["error"]["n_prompt_tokens"], content["error"]["n_ctx"]) == (6031, 1024)


@pytest.mark.parametrize("dialect", Dialect)
def test_json_that_cannot_be_parsed_is_the_clients_fault(dialect: Dialect) -> None:
    found = corrected(500, NOT_JSON, dialect, request_id="r")
    assert found is not None
    status, body = found

    assert status == json.loads(body)["error"]["code"] == 400
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert "column 2" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}'),
        (400, b'{"error":{"code":400,"message":"no","type":"exceed_context_size_error"}}'),
        (400, b'{"error":"exceed_context_size_error"}'),
        (400, b'["error"]'),
        (400, NOT_JSON.replace(b"500", b"400")),
        (500, b'{"error":{"code":500,"message":"[json.exception.type_error.302] type"}}'),
        (500, b'{"error":{"code":500,"message":"Context size has been exceeded."}}'),
        (500, OVERFLOW),
        (400, b"[" * 5000),
        (400, b"\xff"),
        (400, b""),
        (400, OVERFLOW[:-2] + b',"x":"' + b"x" * MAX_BYTES + b'"}}'),
    ],
)
def test_any_other_error_passes_as_it_is(status: int, body: bytes) -> None:
    assert corrected(status, body, Dialect.OPENAI, request_id="r") is None


@given(st.sampled_from([400, 500]), st.binary())
def test_no_body_raises(status: int, body: bytes) -> None:
    corrected(status, body, Dialect.ANTHROPIC, request_id="r")
