from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from llama_gguf.gateway.sessions import session_of
from llama_gguf.http1.fields import SESSION_FIELDS, read_request
from llama_gguf.http1.request import Request, RequestHead
from llama_gguf.http1.routes import Router
from llama_gguf.scheduling.sessions import NO_SESSION, SessionTable

CHAT = b"/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()


def request(path: bytes = CHAT, fields: Sequence[tuple[bytes, bytes]] = ()) -> Request:
    all_fields = [(b"Host", b"x"), *fields]
    route = Router(expose_all=False).route(b"POST", path)
    head = RequestHead(b"POST", path, path, "1.1", all_fields)
    return Request(
        head, cors=b"", route=route, sorted_fields=read_request(all_fields, version="1.1")
    )


def session(
    body: bytes = BODY,
    *fields: tuple[bytes, bytes],
    path: bytes = CHAT,
    key_id: str = "alice",
    table: SessionTable | None = None,
) -> int:
    return session_of(request(path, fields), key_id, body, table or SessionTable())


def test_the_first_of_the_headers_of_agents_counts_and_all_are_forwarded() -> None:
    fields = [(name.title(), b"id of " + name) for name in SESSION_FIELDS]
    for number in range(len(fields)):
        present = fields[number:][::-1]
        assert session(b"{}", *present) == session(b"", fields[number])
        forwarded = b"".join(request(CHAT, present).sorted_fields.forwarded)
        assert all(value in forwarded for _, value in present)

    assert len({session(BODY, field) for field in fields}) == len(fields)


def test_an_empty_header_is_no_session() -> None:
    assert session(BODY, (b"session-id", b"")) == session(BODY)


def test_a_header_comes_before_the_body_and_a_cache_key_before_the_messages() -> None:
    body = b'{"prompt_cache_key":"abc",' + BODY[1:]
    other = b'{"prompt_cache_key":"abc"}'

    assert session(body) == session(other) != session(BODY)
    assert session(body, (b"x-session-id", b"def")) != session(body)


def test_a_session_belongs_to_its_key() -> None:
    named = (b"session-id", b"abc")

    assert session(BODY, named) != session(BODY, named, key_id="bob")
    assert session(BODY) != session(BODY, key_id="bob")


@pytest.mark.parametrize("path", [b"/v1/embeddings", b"/v1/rerank", b"/v1/audio/transcriptions"])
def test_other_requests_have_a_session_only_by_a_header(path: bytes) -> None:
    assert session(BODY, path=path) == NO_SESSION
    assert session(BODY, (b"session-id", b"abc"), path=path) != NO_SESSION


def test_a_body_without_a_conversation_has_no_session() -> None:
    for path in (CHAT, b"/v1/messages", b"/v1/responses", b"/v1/completions"):
        assert session(b"{}", path=path) == NO_SESSION


# Plain prompts ------------------------------------------------------------------------------------


def prompt(text: str) -> bytes:
    return json.dumps({"prompt": text, "max_tokens": 9}).encode()


def words(count: int, of: str = "a") -> str:
    return " ".join(f"{of}{number}" for number in range(count))


def test_a_prompt_that_has_grown_is_where_it_was() -> None:
    table = SessionTable()
    for count in (20, 30, 31, 100, 200, 500, 5000):
        found = session(prompt(words(count)), path=b"/v1/completions", table=table)
        assert found != NO_SESSION
        if count == 20:
            table.pin(found, 7)
        assert table.engine_of(found) == 7

    other = session(prompt(words(100, "b")), path=b"/v1/completions", table=table)
    assert table.engine_of(other) != 7


def test_the_same_short_prompt_is_the_same_session() -> None:
    first, again, other = (session(prompt(t), path=b"/completion") for t in ("ab", "ab", "ac"))

    assert first == again != other
