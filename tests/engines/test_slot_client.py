"""Slots are saved and restored by llama-server's API: its responses, and failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.slot_client import SlotClient, SlotError, SlotState

T = TypeVar("T")
LINES = b"llamacpp:prompt_tokens_total 118\nllamacpp:prompt_seconds_total 0.5\n"


def against(
    reply: bytes, use: Callable[[SlotClient], Coroutine[Any, Any, T]]
) -> tuple[T | SlotError, bytes]:
    """The outcome of *use* against an engine that sends *reply*, and what it has received."""

    async def work() -> tuple[T | SlotError, bytes]:
        received = b""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal received
            received = await reader.readuntil(b"\r\n\r\n")
            length = int(received.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            received += await reader.readexactly(length)
            writer.write(reply)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = SlotClient(EngineAddress("127.0.0.1", port, api_key="secret"))
            try:
                return await use(client), received
            except SlotError as error:
                return error, received

    return asyncio.run(work())


def response(body: object, status: int = 200) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data)


def test_a_slot_is_saved_with_the_engines_key() -> None:
    found, sent = against(
        response({"id_slot": 1, "n_saved": 125, "n_written": 4096}),
        lambda client: client.save(1, "a.saving", seconds=5),
    )

    assert found == (125, 4096)
    assert sent.startswith(b"POST /slots/1?action=save HTTP/1.0\r\n")
    assert b"Authorization: Bearer secret\r\n" in sent
    assert sent.endswith(b'{"filename": "a.saving"}')


def test_a_slot_is_restored() -> None:
    found, sent = against(
        response({"n_restored": 125}), lambda client: client.restore(0, "a.state", seconds=5)
    )

    assert found == 125
    assert sent.startswith(b"POST /slots/0?action=restore ")


def test_slots_are_listed_as_both_engines_report_them() -> None:
    rows = [
        {"id": 0, "n_ctx": 2048, "is_processing": False},
        {"id": 1, "is_processing": True, "id_task": 7, "n_prompt_tokens": 125},
    ]
    found, _ = against(response(rows), lambda client: client.slots())

    assert found == [SlotState(0, False, None, None), SlotState(1, True, 7, 125)]


def test_a_prompt_is_computed_and_nothing_generated() -> None:
    found, sent = against(
        response({"timings": {"cache_n": 117, "prompt_n": 1}}),
        lambda client: client.compute([1, 2, 3]),
    )

    assert found == (118, 117)
    assert b'{"prompt": [1, 2, 3], "n_predict": 0, "cache_prompt": true}' in sent


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (response(LINES), (118, 0.5)),
        (response(b""), (0, 0.0)),
        (response({}, 501), (0, 0.0)),
        (b"", (0, 0.0)),
    ],
)
def test_what_was_computed_is_read_from_its_metrics(
    reply: bytes, expected: tuple[int, float]
) -> None:
    assert against(reply, lambda client: client.computed())[0] == expected


@pytest.mark.parametrize(
    ("reply", "status", "text"),
    [
        (response({"error": {"message": "no such slot"}}, 400), 400, "no such slot"),
        (response({"error": "x"}, 501), 501, "status 501"),
        (response(b"<html>", 404), 404, "not JSON"),
        (b"", 0, "did not respond"),
        (b"nonsense\r\n\r\n", 0, "did not respond"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", 0, "did not respond"),
    ],
)
def test_a_failure_is_an_error_with_its_status(reply: bytes, status: int, text: str) -> None:
    found, _ = against(reply, lambda client: client.restore(0, "a", seconds=5))

    assert isinstance(found, SlotError)
    assert (found.status, text in str(found)) == (status, True)


@pytest.mark.parametrize("rows", [{}, [1], [{"id": "x"}], None])
def test_a_list_of_another_form_is_an_error(rows: object) -> None:
    found, _ = against(response(rows), lambda client: client.slots())

    if rows != {}:
        assert isinstance(found, SlotError)


def test_an_engine_that_is_not_there_is_an_error() -> None:
    client = SlotClient(EngineAddress("", 0, "/nowhere/engine.sock"))

    with pytest.raises(SlotError, match="did not respond"):
        asyncio.run(client.slots())
