from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from typing import Any

import pytest

from llama_gguf.errors import UserError
from llama_gguf_bench import session
from llama_gguf_bench.connection import Connections, parse_target
from llama_gguf_bench.load import Level, clock
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.server import Server
from llama_gguf_bench.session import Prepared, fixed_fields, prepare, run_loads, run_turns
from llama_gguf_bench.summary import summarise
from tests.support.engines import TOKENS, ChatEngine


def prepared(
    url: str, lines: Sequence[str] | None = None, **asked: Any
) -> tuple[Prepared, list[Level]]:
    """The facts about the server, and the levels if there are loads."""
    options = Options(**{"loads": (), "warmup": 0.0, "prompt_tokens": (40,), **asked})

    target = parse_target(url)
    return asyncio.run(run_loads(target, options, lines, progress=lambda *_: None))


def test_synthetic_prompts_have_their_length_in_the_servers_tokens(engine: ChatEngine) -> None:
    prepared(engine.url, loads=(Load(streams=2),), requests=4)

    asked = engine.requests[2:]  # after two that measure the tokens per word
    assert [len(b["messages"][0]["content"].split()) for b in asked] == [15] * 4
    assert all(b["stream"] and b["stream_options"]["include_usage"] for b in asked)


def test_a_run_counts_the_servers_responses(engine: ChatEngine) -> None:
    _, levels = prepared(engine.url, loads=(Load(streams=1), Load(streams=3)), requests=6)

    found = [summarise(level, {}) for level in levels]
    assert [summary.counted for summary in found] == [6, 6]
    assert [summary.tokens["output"] for summary in found] == [6 * TOKENS] * 2
    assert all(summary.counted_by == {"usage": 6} for summary in found)


def test_a_server_that_closes_after_every_stream_costs_no_request(engine: ChatEngine) -> None:
    engine.closes = True

    _, (level,) = prepared(engine.url, loads=(Load(streams=2),), requests=20)

    assert not [record.error for record in level.records if record.error]


def test_lines_are_sent_in_turn_and_their_members_take_precedence(engine: ChatEngine) -> None:
    lines = ['"one"', '{"prompt": "two", "max_tokens": 9}']

    prepared(engine.url, lines, loads=(Load(streams=1),), requests=3, chat=False)

    asked = engine.requests[1:]
    assert [b["prompt"] for b in asked] == ["one", "two", "one"]
    assert [b["max_tokens"] for b in asked] == [64, 9, 64]


def test_without_streaming_responses_in_one_piece_are_requested(engine: ChatEngine) -> None:
    _, (level,) = prepared(engine.url, loads=(Load(streams=1),), requests=2, streamed=False)

    assert not any(b["stream"] for b in engine.requests)
    assert [record.ok for record in level.records] == [True, True]


def test_the_gateways_slots_are_reported_with_the_level(engine: ChatEngine) -> None:
    engine.gets["/health"] = {
        "version": "1", "slots": {"used": 1, "total": 4}, "queue": {"length": 0},
    }  # fmt: skip

    _, (level,) = prepared(engine.url, loads=(Load(streams=1),), requests=2)

    assert level.server.keys() <= {"slots_used_mean", "queue_max"}


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "returned status 401: no. Set LLAMA_API_KEY to a key of the endpoint; a new key"),
        (404, "returned status 404: no. Check that this is the base URL"),
        (429, "--rate-limit 1000000"),
        (503, "Wait until the model is ready."),
        (418, "returned status 418: no.$"),
    ],
)
def test_an_error_response_ends_the_run_with_advice(
    engine: ChatEngine, status: int, advice: str
) -> None:
    engine.status = status

    with pytest.raises(UserError, match=advice):
        prepared(engine.url)


def test_a_refused_connection_ends_the_run_with_a_question() -> None:
    with pytest.raises(UserError, match=r"cannot be reached: .* Check that it runs"):
        prepared("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "--ca-file"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "speaks TLS"),
        (ConnectionRefusedError(111, "Connection refused"), "Check that it runs"),
    ],
)
def test_the_advice_for_a_failed_connection_fits_its_cause(error: OSError, advice: str) -> None:
    assert advice in session._advice(error)


def test_a_server_without_the_api_is_recognised() -> None:
    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            target = parse_target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            connections = Connections(target, clock, keeps=False)
            with pytest.raises(UserError, match="not like an OpenAI-compatible endpoint"):
                await prepare(connections, Options(loads=()), None)
            connections.close()

    asyncio.run(scenario())


def test_llama_cpp_is_requested_to_ignore_the_end_token() -> None:
    options = Options(loads=(), body={"temperature": 1, "top_p": 0.5})

    fields = fixed_fields(options, Server(is_llama_cpp=True))

    assert fields["ignore_eos"] is True
    assert (fields["temperature"], fields["top_p"]) == (1, 0.5)
    assert "ignore_eos" not in fixed_fields(options, Server())


def test_a_server_that_insists_on_the_new_name_of_the_limit_gets_it(engine: ChatEngine) -> None:
    engine.refused_member = "max_tokens"
    engine.refusal = "Unsupported parameter: use 'max_completion_tokens' instead."

    _, (level,) = prepared(engine.url, loads=(Load(streams=1),), requests=3, output_tokens=9)

    assert not [record.error for record in level.records if record.error]
    assert [b["max_completion_tokens"] for b in engine.requests[-3:]] == [9] * 3
    assert all("max_tokens" not in b for b in engine.requests[1:])


def test_the_new_name_of_the_limit_can_be_requested() -> None:
    fields = fixed_fields(Options(loads=(), body={"max_completion_tokens": 5}), Server())

    assert fields["max_completion_tokens"] == 5
    assert "max_tokens" not in fields


def test_the_two_sides_of_a_gateway_alternate(engine: ChatEngine) -> None:
    with ChatEngine() as backend:
        targets = {"direct": parse_target(backend.url), "gateway": parse_target(engine.url)}
        options = Options(loads=(Load(streams=2), Load(streams=1)), requests=3)
        _, turns = asyncio.run(run_turns(targets, options, None, progress=lambda *_: None))

    assert [(each.streams, len(each.pairs)) for each in turns] == [(2, 3), (1, 3)]
    assert len(engine.requests) == len(backend.requests)
