"""OpenAI's client with the gateway, the real engine and the real model."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import MODEL, ROOT, Served
from tests.support.processes import command_line

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.base_url, api_key=served.key, max_retries=0) as client:
        yield client


def test_a_chat_gets_a_response(client: openai.OpenAI) -> None:
    response = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=16)

    assert response.choices[0].message.content
    assert response.usage is not None
    assert response.usage.completion_tokens > 0


def test_streamed_chat_comes_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=16, stream=True, temperature=0
    )
    whole = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=16, temperature=0
    )

    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]

    assert len([p for p in pieces if p]) > 1
    assert "".join(p or "" for p in pieces) == whole.choices[0].message.content


def test_the_async_client_streams_too(served: Served) -> None:
    async def stream() -> int:
        async with openai.AsyncOpenAI(base_url=served.base_url, api_key=served.key) as client:
            chunks = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=8, stream=True
            )
            return len([chunk async for chunk in chunks])

    assert asyncio.run(stream()) > 1


def test_a_completion_gets_a_response(client: openai.OpenAI) -> None:
    response = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8)

    assert response.choices[0].text


def test_models_are_listed_by_name_not_by_path(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_wrong_key_is_an_authentication_error(served: Served) -> None:
    with (
        openai.OpenAI(base_url=served.base_url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()

    assert caught.value.code == "invalid_api_key"


def test_an_error_of_the_engine_passes_unchanged(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 5000, max_tokens=1)

    # The engine's envelope, with the numbers that agents use to shorten their prompt.
    assert caught.value.type == "exceed_context_size_error"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["n_ctx"] == 2048


def test_every_chunk_of_a_stream_holds_whole_events_and_the_last_is_done(served: Served) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 12, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request(
        "POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {served.key}"}
    )
    response = connection.getresponse()
    assert response.getheader("Transfer-Encoding") == "chunked"
    raw = b""
    while not raw.endswith(b"0\r\n\r\n"):  # past the decoder: sizes, data, line ends
        raw += response.fp.readline()
    connection.close()

    chunks = []
    while not raw.startswith(b"0\r\n"):
        size, _, raw = raw.partition(b"\r\n")
        chunks.append(raw[: int(size, 16)])
        raw = raw[int(size, 16) :].removeprefix(b"\r\n")
    events = b"".join(chunks).removesuffix(b"\n\n").split(b"\n\n")

    assert raw == b"0\r\n\r\n"
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)  # the engine may put two in one
    assert events[-1] == b"data: [DONE]"
    assert all(json.loads(event.removeprefix(b"data: ")) for event in events[:-1])


@pytest.mark.parametrize(
    ("first", "last"), [("curl -N http", "}'"), ("python3 - <<", "END")], ids=["curl", "python"]
)
def test_the_printed_examples_work_unchanged(served: Served, first: str, last: str) -> None:
    served.until(lambda: "Ctrl-C" in served.output, "the examples")
    printed = re.search(
        rf"^{re.escape(first)}.*?{re.escape(last)}$", served.output, re.MULTILINE | re.DOTALL
    )
    assert printed is not None
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", printed[0]],
        env={**os.environ, "PATH": path},
        capture_output=True,
        timeout=120,
        check=True,
    )

    assert done.stdout


@pytest.mark.parametrize(("language", "program"), [("bash", "bash"), ("python", sys.executable)])
def test_the_first_requests_of_getting_started_work(
    served: Served, language: str, program: str
) -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
    section = page.partition("## 3. Send a request")[2]
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    code = code.replace("http://127.0.0.1:8000/v1", served.base_url)
    code = code.replace("the-key-that-was-shown", served.key)
    environ = {"OPENAI_BASE_URL": served.base_url, "OPENAI_API_KEY": served.key}

    done = subprocess.run(
        [program, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        timeout=120,
        check=True,
    )

    assert done.stdout.strip()
    assert b'"error"' not in done.stdout


def test_no_secret_is_on_a_command_line_or_in_a_log(served: Served) -> None:
    command_lines = [command_line(pid) for pid in served.children()]
    assert len(command_lines) == 2
    for secret in (served.key, served.backend_key):
        assert not any(secret in line for line in command_lines)
        logs = [p for p in (served.data_dir / "logs").rglob("*") if p.is_file()]
        assert logs
        assert not any(secret in p.read_text() for p in logs)
    assert served.backend_key not in served.output
