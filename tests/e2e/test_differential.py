"""The same bytes to the gateway and directly to the real engine: the responses have to agree.

Only the key differs. The permitted differences are in ``OURS`` for header fields, in ``VOLATILE``
for what differs between any two responses of the engine, and in the tests at the end for responses
of the gateway itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from llama_gguf.http1.engine_errors import corrected
from llama_gguf.http1.routes import Dialect
from tests.e2e.conftest import Served
from tests.support.messages import Response, chunk, read_responses, request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

KEY: Final = "{key}"
"""Replaced by the key of the gateway or of the engine."""
ORIGIN: Final = "https://app.example"

# Hop-by-hop (RFC 9110 section 7.6.1), or set by the gateway.
OURS: Final = re.compile(
    "connection|date|keep-alive|server|transfer-encoding|vary|x-request-id"
    "|x-ratelimit-.*|access-control-.*"
)
# Ids (also of the items of /v1/responses), times and durations.
VOLATILE: Final = re.compile("(item_|response_)?id|(created|completed)(_at)?|time_ms|timings")

MESSAGES: Final = [
    {"role": "system", "content": "You answer in one line."},
    {"role": "user", "content": 'Grüße! 你好 🦙 \\ " \u2028 say it again.'},
]
CHAT: Final = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, "seed": 7}
TEXT: Final = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "seed": 7}
INPUT: Final = {"input": "Once", "max_output_tokens": 12, "temperature": 0, "seed": 7}
TOKENIZE: Final = b'{"content":"Once upon a time"}'


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    """For reproducible results: no prompt cache, and one request at a time."""
    return {"PARALLEL": "1", "EXTRA_ARGS": "--no-cache-prompt", "CORS_ORIGINS": ORIGIN}


# Asking both --------------------------------------------------------------------------------------


def post(target: str, body: object, *fields: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", target, "Connection: close", *fields, key=KEY, body=raw)


def plain(method: str, target: str, *fields: str) -> bytes:
    return request(method, target, "Connection: close", *fields, key=KEY)


def chunked(target: str, *chunks: bytes, trailer: bytes = b"") -> bytes:
    head = request(
        "POST", target, "Connection: close", "Transfer-Encoding: chunked", key=KEY, body=None
    )
    return head + b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


def responses(served: Served, raw: bytes, *, backend: bool) -> list[Response]:
    """All responses until the connection ends, interim ones too."""
    key = served.backend_key if backend else served.key
    with served.wire(backend=backend) as wire:
        wire.send(raw.replace(KEY.encode(), key.encode()))
        return read_responses(wire.read_rest(), is_head_request=raw.startswith(b"HEAD "))


def both(served: Served, raw: bytes) -> tuple[Response, Response]:
    """The last, complete response of the gateway and of the engine."""
    ours, engines = (responses(served, raw, backend=backend)[-1] for backend in (False, True))
    assert ours.is_whole
    assert engines.is_whole
    return ours, engines


def fields(response: Response, *without: str) -> list[tuple[str, str]]:
    """In a fixed order: the engine has its own in a hash table."""
    kept = ((n, v) for n, v in response.fields if not OURS.fullmatch(n.lower()))
    return sorted((n, v) for n, v in kept if n.lower() not in without)


def lasting(value: Any) -> Any:
    """*value* without what differs between any two responses."""
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if not VOLATILE.fullmatch(k)}
    return [lasting(v) for v in value] if isinstance(value, list) else value


def events(response: Response) -> Iterator[tuple[str, Any]]:
    """The lines before an event's data, and the data without volatile values."""
    assert response.body.endswith(b"\n\n")
    for event in response.body.decode().removesuffix("\n\n").split("\n\n"):
        name, _, data = event.rpartition("data: ")
        yield name, data if data == "[DONE]" else lasting(json.loads(data))


def agree(ours: Response, engines: Response) -> None:
    """To the byte: status line, fields, body and its framing."""
    assert ours.status_line == engines.status_line
    assert fields(ours) == fields(engines)
    assert ours.all("transfer-encoding") == engines.all("transfer-encoding")
    assert ours.body == engines.body


# To the byte --------------------------------------------------------------------------------------

TOO_LONG: Final = {**TEXT, "prompt": "word " * 5000}
BIG: Final = json.dumps({"content": "Once", "padding": "x" * 9_000_000}).encode()
AS_THEY_ARE: Final = {
    "tokenize": post("/tokenize", TOKENIZE),
    "detokenize": post("/detokenize", {"tokens": [10, 200, 3000, 20000]}),
    "template": post("/apply-template", {"messages": MESSAGES}),
    "count, chat": post("/v1/chat/completions/input_tokens", {"messages": MESSAGES}),
    "count, messages": post("/v1/messages/count_tokens", {"messages": MESSAGES[1:]}),
    "health, under /v1": plain("GET", "/v1/health"),
    # The engine's own errors, which clients distinguish by their text.
    "no object": post("/v1/chat/completions", b"[]"),
    "no messages": post("/v1/chat/completions", {"max_tokens": 1}),
    "a wrong type": post("/v1/completions", {**TEXT, "temperature": "hot"}),
    "a wrong value": post("/v1/completions", {**TEXT, "logit_bias": 3, "grammar": "root ::= ("}),
    "no embeddings": post("/v1/embeddings", {"input": "Once"}),
    "no reranking": post("/v1/rerank", {"query": "Once", "documents": ["upon"]}),
    "no infill": post("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    "no audio": post("/v1/audio/transcriptions", {}),
    "no path below one": plain("GET", "/v1/responses/nothing?x=1"),
    "a wrong method": plain("GET", "/v1/chat/completions"),
    "another wrong method": plain("DELETE", "/v1/completions"),
    "a third wrong method": request(
        "PUT", "/v1/completions", "Connection: close", key=KEY, body=b"{}"
    ),
    # Bodies.
    "chunked": chunked("/tokenize", chunk(TOKENIZE)),
    "many chunks": chunked("/tokenize", *(chunk(bytes((byte,))) for byte in TOKENIZE)),
    "chunk extensions": chunked("/tokenize", b"1e;a=b\r\n" + TOKENIZE + b"\r\n"),
    "trailers": chunked("/tokenize", chunk(TOKENIZE), trailer=b"X-Checksum: 1\r\n"),
    "a big body": post("/tokenize", BIG),
    "a big chunked body": chunked(
        "/tokenize", *(chunk(BIG[i : i + 65536]) for i in range(0, len(BIG), 65536))
    ),
    "expected": post("/tokenize", TOKENIZE, "Expect: 100-continue"),
    "expected, in capitals": post("/tokenize", TOKENIZE, "EXPECT: 100-Continue"),
    # Heads.
    "a strange spelling": post("/tokenize", TOKENIZE).replace(
        b"Content-Length:", b"cONTENT-lENGTH:\t  "
    ),
    "key by x-api-key": post("/tokenize", TOKENIZE).replace(
        b"Authorization: Bearer", b"X-API-Key:"
    ),
    "many fields": post("/tokenize", TOKENIZE, *(f"X-Field-{n}: {'v' * 64}" for n in range(40))),
    "a field twice": post("/tokenize", TOKENIZE, "X-Twice: 1", "x-twice: 2", "X-Empty:"),
    "a field in Latin-1": post("/tokenize", TOKENIZE, "X-Name: Gr\xfc\xdfe"),
    "compression": post("/tokenize", TOKENIZE, "Accept-Encoding: gzip, br, zstd"),
    "a range": post("/tokenize", TOKENIZE, "Range: bytes=0-3"),
    "an offer to upgrade": post("/tokenize", TOKENIZE, "Upgrade: h2c"),
    "a query": post("/tokenize?a=1&b=%20%2F%3f&c=x+y&a=2&&d", TOKENIZE),
    "a strange query": post("/tokenize?/../?a//b=%C3%BC&%00=;:@!$'()*", TOKENIZE),
    "an empty query": post("/tokenize?", TOKENIZE),
    "an escaped path": post("/%74okenize", TOKENIZE),
}


CORRECTED: Final = {
    "an empty chunked body": chunked("/v1/completions"),
    "no JSON": post("/v1/chat/completions", b'{"messages": [}'),
    "no UTF-8": post("/v1/chat/completions", b'{"messages": "\xff"}'),
    "no body": post("/v1/chat/completions", b""),
    "no length": plain("POST", "/v1/chat/completions"),
    "too long": post("/v1/completions", TOO_LONG),
    "too long a stream": post("/v1/completions", {**TOO_LONG, "stream": True}),
    "too long a message": post(
        "/v1/messages", {"messages": [{"role": "user", "content": "w " * 9000}]}
    ),
}
"""Errors of which the gateway corrects the status or the body: ``http1/engine_errors.py``."""


@pytest.mark.parametrize("case", CORRECTED)
def test_of_an_error_that_is_corrected_all_else_is_as_the_engine_sends_it(
    served: Served, case: str
) -> None:
    raw = CORRECTED[case]
    ours, engines = both(served, raw)
    dialect = Dialect.ANTHROPIC if b" /v1/messages" in raw else Dialect.OPENAI
    found = corrected(engines.status, engines.body, dialect, request_id=ours["x-request-id"])
    assert found is not None

    assert (ours.status, ours.body) == found
    assert fields(ours, "content-length") == fields(engines, "content-length")


@pytest.mark.parametrize("raw", AS_THEY_ARE.values(), ids=AS_THEY_ARE.keys())
def test_both_respond_with_the_same_bytes(served: Served, raw: bytes) -> None:
    agree(*both(served, raw))


def test_both_send_100_continue_first(served: Served) -> None:
    raw = post("/tokenize", TOKENIZE, "Expect: 100-continue")
    head, _, _ = raw.partition(b"\r\n\r\n")

    for backend in (False, True):
        key = served.backend_key if backend else served.key
        with served.wire(backend=backend) as wire:
            wire.send(head.replace(KEY.encode(), key.encode()) + b"\r\n\r\n")
            assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n")
            wire.send(TOKENIZE)
            assert wire.response().status == 200


def test_both_serve_many_requests_on_one_connection(served: Served) -> None:
    words = [json.dumps({"content": word}).encode() for word in ("Once", "upon", "a", "time")]
    seen = []
    for backend in (False, True):
        key = served.backend_key if backend else served.key
        with served.wire(backend=backend) as wire:
            for word in words:
                wire.send(request("POST", "/tokenize", key=key, body=word))
                seen.append(wire.response())

    ours, engines = seen[: len(words)], seen[len(words) :]
    assert len({response.body for response in ours}) == len(words)
    for our, engine in zip(ours, engines, strict=True):
        agree(our, engine)


# Without what changes between responses -----------------------------------------------------------

SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL: Final = {"type": "function", "function": {"name": "go", "parameters": SCHEMA}}
GENERATED: Final = {
    "health": plain("GET", "/v1/health"),
    "props": plain("GET", "/props"),
    "chat": post("/v1/chat/completions", CHAT),
    "chat, short name": post("/chat/completions", CHAT),
    "chat, chunked": chunked(
        "/v1/chat/completions", *(chunk(bytes((b,))) for b in json.dumps(CHAT).encode())
    ),
    "chat, unknown parameters": post(
        "/v1/chat/completions", {**CHAT, "llama": {"wool": [1, None]}}
    ),
    "chat, logprobs": post("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3}),
    "chat, a stop word": post("/v1/chat/completions", {**CHAT, "stop": [" ", "\n"]}),
    "chat, a schema": post(
        "/v1/chat/completions",
        {**CHAT, "response_format": {"type": "json_object", "schema": SCHEMA}},
    ),
    "chat, tools": post(
        "/v1/chat/completions",
        {**CHAT, "tools": [TOOL], "tool_choice": "required", "max_tokens": 48},
    ),
    "completions": post("/v1/completions", TEXT),
    "completions, by the engine's own name": post(
        "/completion", {**TEXT, "n_predict": 8, "n_probs": 2}
    ),
    "responses": post("/v1/responses", INPUT),
    "messages": post("/v1/messages", {**CHAT, "messages": MESSAGES[1:]}),
}


@pytest.mark.parametrize("raw", GENERATED.values(), ids=GENERATED.keys())
def test_both_send_the_same_response(served: Served, raw: bytes) -> None:
    ours, engines = both(served, raw)

    assert ours.status == engines.status == 200
    assert lasting(json.loads(ours.body)) == lasting(json.loads(engines.body))
    # Its volatile numbers can differ in length.
    assert fields(ours, "content-length") == fields(engines, "content-length")
    assert int(ours["content-length"]) == len(ours.body)


def test_both_respond_to_head_alike(served: Served) -> None:
    ours, engines = both(served, plain("HEAD", "/v1/health"))

    agree(ours, engines)
    assert int(ours["content-length"]) > 0


STREAMED: Final = {
    "chat": post("/v1/chat/completions", {**CHAT, "stream": True}),
    "chat, chunked": chunked(
        "/v1/chat/completions", chunk(json.dumps({**CHAT, "stream": True}).encode())
    ),
    "chat, usage": post(
        "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    ),
    "chat, tools": post(
        "/v1/chat/completions",
        {**CHAT, "stream": True, "tools": [TOOL], "tool_choice": "required", "max_tokens": 48},
    ),
    "chat, big events": post(
        "/v1/chat/completions", {**CHAT, "stream": True, "logprobs": True, "top_logprobs": 400}
    ),
    "completions": post("/v1/completions", {**TEXT, "stream": True}),
    "completions, by the engine's own name": post(
        "/completion", {**TEXT, "stream": True, "return_progress": True}
    ),
    "responses": post("/v1/responses", {**INPUT, "stream": True}),
    "messages": post("/v1/messages", {**CHAT, "messages": MESSAGES[1:], "stream": True}),
}


@pytest.mark.parametrize("raw", STREAMED.values(), ids=STREAMED.keys())
def test_both_stream_the_same_events(served: Served, raw: bytes) -> None:
    ours, engines = both(served, raw)

    assert ours.status == engines.status == 200
    assert list(events(ours)) == list(events(engines))
    assert len(list(events(ours))) > 3
    assert fields(ours) == fields(engines)
    assert ours["content-type"] == "text/event-stream"
    assert ours.all("transfer-encoding") == engines.all("transfer-encoding") == ["chunked"]


# Where they differ, and have to -------------------------------------------------------------------


def test_a_stream_to_http_1_0_ends_with_its_connection(served: Served) -> None:
    raw = post("/v1/completions", {**TEXT, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
    ours, engines = both(served, raw)

    # RFC 9112 section 7.1: HTTP/1.0 has no chunked coding, though the engine uses it.
    assert engines["transfer-encoding"] == "chunked"
    assert "transfer-encoding" not in ours
    assert ours["connection"] == "close"
    assert list(events(ours)) == list(events(engines))


def test_the_gateway_understands_the_absolute_form(served: Served) -> None:
    # RFC 9112 section 3.2.2: a server MUST accept it; the engine has no such path.
    [ours] = responses(served, post("http://gateway.example/tokenize", TOKENIZE), backend=False)
    [engines] = responses(served, post("/tokenize", TOKENIZE), backend=True)

    agree(ours, engines)


def test_the_gateway_serves_pipelined_requests(served: Served) -> None:
    # RFC 9112 section 9.3.2; the engine discards bytes that it has read after a request.
    first = request("POST", "/tokenize", key=KEY, body=b'{"content":"upon"}')
    ours = responses(served, first + post("/tokenize", TOKENIZE), backend=False)

    agree(ours[0], both(served, post("/tokenize", {"content": "upon"}))[1])
    agree(ours[1], both(served, post("/tokenize", TOKENIZE))[1])


OWN: Final = {
    "no key": (
        request("POST", "/tokenize", "Connection: close", key=None, body=TOKENIZE),
        401,
        "invalid_api_key",
    ),
    "no host": (
        plain("GET", "/v1/health").replace(b"Host: gateway.example\r\n", b""),
        400,
        "bad_request",
    ),
    "a folded field": (plain("GET", "/v1/health", "X-Folded: a\r\n b"), 400, "bad_request"),
    "an empty segment": (plain("GET", "/v1//models"), 400, "bad_request"),
    "a dot segment": (plain("GET", "/v1/./models"), 400, "bad_request"),
    "an escaped slash": (plain("GET", "/v1%2fmodels"), 400, "bad_request"),
    "slots": (plain("GET", "/slots"), 403, "route_not_exposed"),
    "props to change": (post("/props", {}), 403, "route_not_exposed"),
    "adapters": (plain("GET", "/lora-adapters"), 403, "route_not_exposed"),
    "kept streams": (plain("GET", "/v1/stream/x"), 403, "route_not_exposed"),
    "kept streams to find": (post("/v1/streams/lookup", {}), 403, "route_not_exposed"),
    "models to change": (post("/models", {}), 403, "route_not_exposed"),
    "the page": (plain("GET", "/"), 404, "not_found"),
    "no path": (plain("GET", "/nothing"), 404, "not_found"),
    "another expectation": (
        post("/tokenize", TOKENIZE, "Expect: a miracle"),
        417,
        "expectation_failed",
    ),
}


@pytest.mark.parametrize(("raw", "status", "code"), OWN.values(), ids=OWN.keys())
def test_the_gateway_rejects_with_its_own_errors(
    served: Served, raw: bytes, status: int, code: str
) -> None:
    [ours] = responses(served, raw, backend=False)

    assert (ours.status, json.loads(ours.body)["error"]["code"]) == (status, code)


def test_health_and_metrics_are_the_gateways(served: Served) -> None:
    for path in ("/health", "/metrics"):
        ours, engines = both(served, plain("GET", path))

        assert ours.status == engines.status == 200
        assert json.loads(ours.body).keys() > {"slots"} if path == "/health" else True
        assert ours.body != engines.body


def test_the_engine_allows_any_origin_and_the_gateway_those_of_its_settings(served: Served) -> None:
    for origin, allowed in ((ORIGIN, [ORIGIN]), ("https://evil.example", [])):
        for raw in (
            post("/tokenize", TOKENIZE, f"Origin: {origin}"),
            plain(
                "OPTIONS", "/tokenize", f"Origin: {origin}", "Access-Control-Request-Method: POST"
            ),
        ):
            ours, engines = both(served, raw)

            assert engines.all("access-control-allow-origin") == [origin]
            assert ours.all("access-control-allow-origin") == allowed


def test_the_gateway_names_the_request_and_not_the_engine(served: Served) -> None:
    ours, engines = both(served, post("/tokenize", TOKENIZE, "X-Request-ID: mine-1"))

    assert "server" in engines
    assert "server" not in ours
    assert ours["x-request-id"] == "mine-1"
    assert "x-request-id" not in engines
    assert "date" in ours
