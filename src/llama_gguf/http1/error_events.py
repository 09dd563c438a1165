"""Errors as events of a stream whose head has been sent, in the dialect of the stream's clients.

What each client does with an error decides its form. Clients of chat and completions look for
``error`` in the data. Codex recognises ``response.failed`` only, and Claude Code asks again without
a stream unless the type is ``overloaded_error``: measured with Codex 0.171 and Claude Code 2.1.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from llama_gguf.errors import GatewayError
from llama_gguf.http1 import engine_errors
from llama_gguf.http1.local_response import envelope
from llama_gguf.http1.routes import Dialect

_RESPONSE_ID: Final = rb'"id": ?"(resp[_-][A-Za-z0-9_-]{1,200})"'
_OVERLOADED: Final = "overloaded_error"


def error_event(
    error: GatewayError, dialect: Dialect, *, request_id: str, opening: bytes = b""
) -> bytes:
    """*error* as a server-sent event.

    Args:
        error: why the response is not completed.
        dialect: of the stream.
        request_id: of the request.
        opening: the first bytes of the response so far, which have its id on Responses.
    """
    is_temporary = error.status in (408, 429) or error.status >= 500
    may_retry = is_temporary and error.should_retry is not False
    if dialect is Dialect.RESPONSES:
        # Codex shows the message of an invalid prompt, and sends the request again otherwise.
        code = "server_error" if may_retry else "invalid_prompt"
        return _failed_response(_response_id(opening, request_id), code, error.message)
    content: dict[str, Any] = json.loads(envelope(error, dialect, request_id=request_id))
    if dialect is Dialect.ANTHROPIC and may_retry:
        content["error"]["type"] = _OVERLOADED
    return _event(content, dialect)


def refusal_event(body: bytes, dialect: Dialect, *, request_id: str) -> bytes | None:
    """The engine's error in *body*, which is JSON, as an event; None if it is no error."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "error" not in content:
        return None
    error = content["error"] if isinstance(content["error"], dict) else {}
    status = error.get("code")
    if isinstance(status, int):  # that of the response, in llama-server's own errors
        found = engine_errors.corrected(status, body, dialect, request_id=request_id)
        if found is not None:
            status, content = found[0], json.loads(found[1])
            error = content["error"]
    message = str(error.get("message", content["error"]))
    is_temporary = isinstance(status, int) and status >= 500
    if dialect is Dialect.RESPONSES:
        code = "server_error" if is_temporary else "invalid_prompt"
        if error.get("code") == engine_errors.OVERFLOW:
            code = engine_errors.OVERFLOW
        return _failed_response(_response_id(b"", request_id), code, message)
    if dialect is Dialect.ANTHROPIC and content.get("type") != "error":
        type_ = _OVERLOADED if is_temporary else "invalid_request_error"
        content = {"type": "error", "error": error | {"type": type_, "message": message}}
    return _event(content, dialect)


def _response_id(opening: bytes, request_id: str) -> str:
    found = re.search(_RESPONSE_ID, opening)
    return found[1].decode() if found else f"resp_{request_id}"


def _failed_response(response_id: str, code: str, message: str) -> bytes:
    """Source: https://platform.openai.com/docs/api-reference/responses-streaming."""
    response = {
        "id": response_id,
        "object": "response",
        "status": "failed",
        "error": {"code": code, "message": message},
        "output": [],
    }
    data = json.dumps({"type": "response.failed", "response": response}).encode()
    return b"event: response.failed\ndata: %b\n\n" % data


def _event(content: dict[str, Any], dialect: Dialect) -> bytes:
    prefix = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return b"%bdata: %b\n\n" % (prefix, json.dumps(content).encode())
