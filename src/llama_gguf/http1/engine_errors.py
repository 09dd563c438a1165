"""The two errors of llama-server that are corrected on their way; all others pass as they are.

Agents compact a conversation when they recognise that it is too long: by OpenAI's code, by
Anthropic's sentence, or by OpenAI's sentence, as LiteLLM does. llama-server uses other words,
whose figures are kept. Older builds respond with 500 to JSON that cannot be parsed, which clients
take for a failure of the server and repeat: docs/adr/0031-two-errors-are-corrected.md.
"""

from __future__ import annotations

import json
from typing import Any, Final

from llama_gguf.http1.routes import Dialect

MAX_BYTES: Final = 8192
"""Of an error that is corrected: llama-server's have a few hundred."""
OVERFLOW: Final = "context_length_exceeded"
_OVERFLOW_TYPE: Final = "exceed_context_size_error"
_NOT_JSON: Final = "[json.exception.parse_error"


def corrected(
    status: int, body: bytes, dialect: Dialect, *, request_id: str
) -> tuple[int, bytes] | None:
    """The status and the body that the client gets instead; None if the error passes as it is.

    Args:
        status: of the engine's response.
        body: of that response.
        dialect: of the request.
        request_id: of the request.
    """
    error = read_error(body) if len(body) <= MAX_BYTES else None
    if error is None:
        return None
    if status == 500 and str(error.get("message")).startswith(_NOT_JSON):
        # As newer builds respond.
        error |= {"code": 400, "type": "invalid_request_error"}
        return 400, json.dumps({"error": error}).encode()
    if status == 400 and is_overflow(error):
        return 400, json.dumps(overflow(error, dialect, request_id=request_id)).encode()
    return None


def read_error(body: bytes) -> dict[str, Any] | None:
    """The member ``error`` of *body*; None if there is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else None


def is_overflow(error: dict[str, Any]) -> bool:
    """Whether the engine refuses a prompt that is longer than the context."""
    figures = error.get("n_prompt_tokens"), error.get("n_ctx")
    return error.get("type") == _OVERFLOW_TYPE and all(isinstance(n, int) for n in figures)


def overflow(error: dict[str, Any], dialect: Dialect, *, request_id: str) -> dict[str, Any]:
    """The engine's *error* about a long prompt, in the envelope and the words of *dialect*."""
    tokens, context = error["n_prompt_tokens"], error["n_ctx"]
    if dialect is Dialect.ANTHROPIC:
        error = error | {
            "type": "invalid_request_error",
            "message": f"prompt is too long: {tokens} tokens > {context} maximum",
        }
        return {"type": "error", "error": error, "request_id": request_id}
    # The type stays: llama-server's web UI recognises it.
    message = (
        f"This model's maximum context length is {context} tokens. However, your request "
        f"({tokens} tokens) exceeds the available context size."
    )
    return {"error": error | {"message": message, "param": None, "code": OVERFLOW}}
