"""The description of the API by OpenAPI 3.1, written from the routes' own tables.

It describes what this gateway serves, by its settings, and is made at the first request. What
llama-server accepts and returns is its own: of its bodies, only the members that clients usually
send are described, and all others are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from llama_gguf import __version__
from llama_gguf.config.schema import AuthSettings, RouteSettings
from llama_gguf.errors import GatewayError
from llama_gguf.http1 import local_response
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import A_MODEL, PAGE_FILES, Dialect, Kind, Route, Router

Json = dict[str, Any]

_NOT_STORED: Final = (b"Cache-Control: no-cache\r\n",)

SUMMARIES: Final[Mapping[str, str]] = {
    "/ping": "Whether the gateway runs",
    "/health": "Whether a request would be served, and the state of the engine",
    "/metrics": "Metrics, as JSON or as text",
    "/prometheus/metrics": "Metrics, as text",
    "/openapi.json": "This description",
    "/reload": "Reload the keys file; requires a key in ADMIN_KEY_IDS, if there are any",
    "/usage": "The usage of the key; for an administrator, of all keys",
    "/favicon.ico": "The icon of the dashboard",
    "/completion": "Complete a prompt (llama-server's own format)",
    "/completions": "Complete a prompt",
    "/chat/completions": "Respond to a conversation",
    "/responses": "Respond to input (OpenAI's Responses)",
    "/infill": "Fill in code between a prefix and a suffix",
    "/embedding": "Embed text (llama-server's own format)",
    "/embeddings": "Embed text",
    "/rerank": "Rank documents by a query",
    "/reranking": "Rank documents by a query",
    "/messages": "Respond to a conversation (Anthropic's Messages)",
    "/audio/transcriptions": "Transcribe audio",
    "/tokenize": "The tokens of a text",
    "/detokenize": "The text of tokens",
    "/apply-template": "The prompt of a conversation, by the chat template",
    "/chat/completions/input_tokens": "Count the tokens of a conversation",
    "/chat/completions/control": "Control a running completion",
    "/responses/input_tokens": "Count the tokens of an input",
    "/messages/count_tokens": "Count the tokens of a conversation (Anthropic)",
    "/models": "The models that are served",
    "/models/{model}": "One of the models that are served",
    "/props": "Properties of the engine",
}
"""By path, without /v1."""

_ANYTHING: Final[Json] = {"type": "object"}
_TEXT: Final[Json] = {"type": "string"}
_STREAM: Final[Json] = {"type": "boolean", "description": "respond with an event stream"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 1}
_MESSAGES: Final[Json] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": _TEXT,
            "content": {"type": ["string", "array", "null"], "items": _ANYTHING},
        },
    },
}
_TEXTS: Final[Json] = {
    "type": ["string", "array"],
    "items": {"type": ["string", "integer", "array"]},
}
_INPUT: Final[Json] = {"type": ["string", "array"], "items": _ANYTHING}
_MODEL: Final[Json] = {"type": "string", "description": "ignored: one model is served"}


def _body(required: str, **properties: Json) -> Json:
    return {"type": "object", "required": required.split(), "properties": properties}


_CHAT: Final = _body(
    "messages",
    model=_MODEL,
    messages=_MESSAGES,
    stream=_STREAM,
    max_tokens=_COUNT,
    temperature={"type": "number", "minimum": 0},
)
_COMPLETION: Final = _body("prompt", model=_MODEL, prompt=_TEXTS, stream=_STREAM, max_tokens=_COUNT)
_RESPONSES: Final = _body(
    "input",
    model=_MODEL,
    input=_INPUT,
    stream=_STREAM,
    max_output_tokens=_COUNT,
)
_ANTHROPIC: Final = _body(
    "messages", model=_MODEL, messages=_MESSAGES, stream=_STREAM, max_tokens=_COUNT
)
_RANKING: Final = _body(
    "query documents", model=_MODEL, query=_TEXT, documents={"type": "array", "items": _TEXT}
)
BODIES: Final[Mapping[str, Json]] = {
    "/chat/completions": _CHAT,
    "/chat/completions/input_tokens": _body("messages", model=_MODEL, messages=_MESSAGES),
    "/apply-template": _body("messages", messages=_MESSAGES),
    "/completions": _COMPLETION,
    "/completion": _body("prompt", prompt=_TEXTS, stream=_STREAM, n_predict={"type": "integer"}),
    "/infill": _body("", input_prefix=_TEXT, input_suffix=_TEXT, stream=_STREAM),
    "/responses": _RESPONSES,
    "/responses/input_tokens": _body("input", model=_MODEL, input=_INPUT),
    "/messages": _ANTHROPIC,
    "/messages/count_tokens": _body("messages", model=_MODEL, messages=_MESSAGES),
    "/embeddings": _body("input", model=_MODEL, input=_TEXTS),
    "/embedding": _body("content", content=_TEXTS),
    "/rerank": _RANKING,
    "/reranking": _RANKING,
    "/tokenize": _body("content", content=_TEXT),
    "/detokenize": _body("tokens", tokens={"type": "array", "items": {"type": "integer"}}),
}
"""By path, without /v1; others are any object."""
_UPLOAD: Final[Json] = _body("file", model=_MODEL, file={"type": "string", "format": "binary"})

_HEALTH: Final[Json] = {
    "type": "object",
    "required": ["status", "engine", "model", "slots", "queue", "version", "uptime_seconds"],
    "properties": {
        "status": _TEXT,
        "engine": {"type": "object", "required": ["state"], "properties": {"state": _TEXT}},
        "model": {"type": "object", "properties": {"name": _TEXT}},
        "slots": {"type": "object", "required": ["used", "total"]},
        "queue": {"type": "object", "required": ["length", "size"]},
        "version": _TEXT,
        "uptime_seconds": {"type": "number"},
    },
}
_USAGE: Final[Json] = {
    "type": "object",
    "required": ["key_id", "sees_all", "keys"],
    "properties": {
        "key_id": _TEXT,
        "sees_all": {"type": "boolean"},
        "keys": {"type": "array", "items": _ANYTHING},
    },
}
_RELOADED: Final[Json] = {
    "type": "object",
    "required": ["status", "keys_loaded"],
    "properties": {"status": {"const": "ok"}, "keys_loaded": {"type": "integer"}},
}
_ERROR: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR: Final[Json] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
    },
}
_METRICS: Final[Json] = {
    "text/plain": {"schema": _TEXT},
    "application/openmetrics-text": {"schema": _TEXT},
}
_LOCAL_CONTENT: Final[Mapping[str, Json]] = {
    "/ping": {},
    "/health": {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}},
    "/metrics": {"application/json": {"schema": _ANYTHING}, **_METRICS},
    "/prometheus/metrics": _METRICS,
    "/reload": {"application/json": {"schema": _RELOADED}},
    "/usage": {"application/json": {"schema": {"$ref": "#/components/schemas/Usage"}}},
    "/dashboard": {"text/html": {"schema": _TEXT}},
    "/favicon.ico": {"image/svg+xml": {"schema": _TEXT}},
    **{
        f"/{name}": {content_type.decode().partition(";")[0]: {"schema": _TEXT}}
        for name, content_type in PAGE_FILES.items()
    },
}
"""Of a successful response; any JSON object for others."""

_ANY_REQUEST: Final = (400, 408, 413, 414, 417, 431, 503)
_WITH_A_KEY: Final = (401, 403, 429)
_AT_THE_ENGINE: Final = (502, 504)


def response(router: Router, auth: AuthSettings, routes: RouteSettings) -> LocalResponse:
    """GET /openapi.json. It needs no key: it contains only settings that requests show as well."""
    body = _serialised(router, auth.auth_enabled, routes.metrics_auth_enabled)
    return LocalResponse(200, body, local_response.JSON, _NOT_STORED)


@lru_cache(maxsize=1)  # of one gateway; tests have several
def _serialised(router: Router, needs_keys: bool, guards_metrics: bool) -> bytes:
    found = document(router, needs_keys=needs_keys, guards_metrics=guards_metrics)
    return json.dumps(found, separators=(",", ":")).encode()


def document(router: Router, *, needs_keys: bool = True, guards_metrics: bool = False) -> Json:
    """The description.

    Args:
        router: whose routes it describes.
        needs_keys: AUTH_ENABLED.
        guards_metrics: METRICS_AUTH_ENABLED.
    """
    paths: dict[str, Json] = {}
    for method, path in router.known():
        route = router.route(method.encode(), path.encode())
        guarded = needs_keys and _needs_key(route, guards_metrics=guards_metrics)
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, route, guarded)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llama-gguf-inference",
            "version": __version__,
            "description": "A gateway in front of llama-server: its own paths, and those of "
            "llama-server that it forwards unchanged.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "./"}],  # relative to this document: right below a proxy's path, too
        "tags": [
            {"name": "gateway", "description": "served by the gateway, in every engine state"},
            {"name": "inference", "description": "forwarded; needs a slot, and waits for one"},
            {"name": "query", "description": "forwarded; needs no slot"},
        ],
        "paths": paths,
        "components": {
            "schemas": {
                "Error": _ERROR,
                "AnthropicError": _ANTHROPIC_ERROR,
                "Health": _HEALTH,
                "Usage": _USAGE,
            },
            "parameters": {
                "RequestId": {
                    "name": "x-request-id",
                    "in": "header",
                    "description": "the request's id in logs and in the response; one is made "
                    "if it is missing",
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
                }
            },
            "responses": _errors("Error", "Error") | _errors("Anthropic", "AnthropicError"),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _needs_key(route: Route, *, guards_metrics: bool) -> bool:
    if route.kind is Kind.METRICS:
        return guards_metrics
    return route.kind is Kind.PROXIED or bool(route.scope)


def _operation(method: str, path: str, route: Route, guarded: bool) -> Json:
    short = path.removeprefix("/v1")
    found: Json = {
        "operationId": f"{method.lower()}{_identifier(path)}",
        "tags": [_tag(route)],
        "summary": SUMMARIES.get(short, "The dashboard" if "dashboard" in path else path),
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "security": [{"bearer": []}, {"x-api-key": []}] if guarded else [],
    }
    if path == "/metrics":
        formats = {"type": "string", "enum": ["prometheus"]}
        found["parameters"].append({"name": "format", "in": "query", "schema": formats})
    if path == A_MODEL:
        found["parameters"].append(
            {"name": "model", "in": "path", "required": True, "schema": _TEXT | {"minLength": 1}}
        )
    if method == "POST" and route.kind is Kind.PROXIED:
        found["requestBody"] = {"required": True, "content": _request(short)}
    found["responses"] = _responses(path, route, guarded)
    return found


def _identifier(path: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in path)


def _tag(route: Route) -> str:
    if route.kind is not Kind.PROXIED:
        return "gateway"
    return "inference" if route.needs_slot else "query"


def _request(short: str) -> Json:
    if short.startswith("/audio/"):
        return {"multipart/form-data": {"schema": _UPLOAD}}
    return {"application/json": {"schema": BODIES.get(short, _ANYTHING)}}


def _responses(path: str, route: Route, guarded: bool) -> Json:
    is_local = route.kind is not Kind.PROXIED
    content = {"application/json": {"schema": _ANYTHING}}
    if is_local:
        content = _LOCAL_CONTENT.get(path, content)
    elif route.may_stream:
        content["text/event-stream"] = {}  # OpenAPI 3.1 cannot describe single events
    success: Json = {"description": "success"}
    if content:
        success["content"] = content
    statuses = [
        *_ANY_REQUEST,
        *(_WITH_A_KEY if guarded else ()),
        *(() if is_local else _AT_THE_ENGINE),
        *((500,) if route.kind is Kind.RELOAD else ()),
        *((404,) if path == A_MODEL else ()),
    ]
    prefix = "Anthropic" if route.dialect is Dialect.ANTHROPIC else "Error"
    found = {"200": success} | _references(prefix, statuses)
    if route.kind is Kind.HEALTH:
        found["503"] = {"description": "a request would not be served", "content": content}
    if not is_local:
        found["default"] = {"description": "a response of llama-server"}
    return found


def _references(prefix: str, statuses: Iterable[int]) -> Json:
    return {
        str(status): {"$ref": f"#/components/responses/{prefix}{status}"}
        for status in sorted(statuses)
    }


def _errors(prefix: str, schema: str) -> Json:
    """A response for each status of the gateway's own errors, with its codes."""
    codes: dict[int, set[str]] = {}
    for kind in _kinds(GatewayError):
        if "code" in kind.__dict__:
            codes.setdefault(kind.status, set()).add(kind.code)
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        f"{prefix}{status}": {"description": ", ".join(sorted(names)), "content": content}
        for status, names in sorted(codes.items())
    }


def _kinds(kind: type[GatewayError]) -> Iterable[type[GatewayError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)
