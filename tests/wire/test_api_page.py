"""The examples of docs/api.md are run unchanged, and the page names every path and field."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from llama_gguf.http1 import local_response, routes
from tests.support.engines import ScriptedEngine, Visit
from tests.support.gateways import Processes
from tests.support.keys import EXPIRED_KEY, KEY, KEYS_TEXT
from tests.support.processes import free_port

PAGE: Final = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
EXAMPLES: Final = re.findall(
    r"^```bash\n(.*?)^```\n+^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
)
SLOW_KEY: Final = "sk-dora-admits-one-a-minute"
SMALL_KEY: Final = "sk-emil-has-few-tokens"

RESPONSE: Final = (
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},'
    b'"finish_reason":"stop"}],"object":"chat.completion","created":1}'
)
EVENTS: Final = [
    b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}],"object":"chat.completion.chunk"}\n\n'
    % piece
    for piece in (b"Hel", b"lo!")
] + [b"data: [DONE]\n\n"]
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def serve(visit: Visit) -> None:
    """Respond as llama-server does."""
    if b"break off" in visit.body:
        visit.finish(STREAM_HEAD + chunk(b'data: {"content":"Hel"}\n\n'))
    elif b'"stream": true' in visit.body:
        visit.finish(STREAM_HEAD + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n")
    else:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        visit.finish(head % len(RESPONSE) + RESPONSE)


def serve_all(engine: ScriptedEngine, is_over: threading.Event) -> None:
    while not is_over.wait(0.01):
        if engine.has_visit:
            serve(engine.visit())


@pytest.fixture(scope="module")
def variables(shared_processes: Processes) -> Iterator[Mapping[str, str]]:
    """The servers that the examples need."""
    keys = KEYS_TEXT.replace("bob:", "# bob:") + f"dora:{SLOW_KEY}:1\n"
    keys += f"emil:{SMALL_KEY} tokens_per_day=10\n"
    is_over = threading.Event()
    with ScriptedEngine() as engine:
        gateway = shared_processes.gateway(
            ("127.0.0.1", engine.port), keys=keys, MAX_REQUESTS_PER_MINUTE=100
        )
        lonely = shared_processes.gateway(("127.0.0.1", free_port()), wait_for=503)
        thread = threading.Thread(target=serve_all, args=(engine, is_over))
        thread.start()
        yield {
            "API": f"http://127.0.0.1:{gateway.port}",
            "API_WITHOUT_ENGINE": f"http://127.0.0.1:{lonely.port}",
            "KEY": KEY,
            "EXPIRED_KEY": EXPIRED_KEY,
            "SLOW_KEY": SLOW_KEY,
            "SMALL_KEY": SMALL_KEY,
        }
        is_over.set()
        thread.join()


def shown(text: str) -> re.Pattern[str]:
    """A pattern from an example, in which … matches anything."""
    return re.compile(".*".join(map(re.escape, text.strip().split("…"))), re.DOTALL)


def parted(text: str) -> tuple[list[str], str]:
    """The lines of a head, if there is one, and what follows it."""
    if not text.startswith("HTTP/1.1 "):
        return [], text
    head, _, body = text.partition("\n\n")
    return head.splitlines(), body


@pytest.mark.parametrize(
    ("command", "response"), EXAMPLES, ids=[re.sub(r"\W+", "-", c[:60]) for c, _ in EXAMPLES]
)
def test_an_example_gives_what_the_page_shows(
    variables: Mapping[str, str], command: str, response: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        timeout=50,
        check=True,
    )

    got = done.stdout.decode().replace("\r\n", "\n").removeprefix("HTTP/1.1 100 Continue\n\n")
    lines, body = parted(got)
    wanted_lines, wanted_body = parted(response)
    for wanted in wanted_lines:
        assert any(shown(wanted).fullmatch(line) for line in lines), (wanted, got)
    if wanted_body.strip():
        assert shown(wanted_body).fullmatch(body.strip()), body


def test_every_known_path_is_named() -> None:
    paths = {path.decode() for path in routes._LOCAL} | {*routes._SLOT} | routes._NO_SLOT

    assert {path for path in paths if f"{path}`" not in PAGE} == set()


def test_every_field_of_local_responses_is_named() -> None:
    source = Path(local_response.__file__).read_text("utf-8").replace(r"\r\n", "\n")
    lines = re.findall(r'(?m)(?:b"|^|\n)([A-Za-z-]+): %', source)
    fields = {field for field in lines if "Access-Control" not in field}

    assert "Retry-After" in fields
    assert {field for field in fields if field not in PAGE} == set()


def test_every_kind_of_example_is_there() -> None:
    assert len(EXAMPLES) == PAGE.count("```bash") == PAGE.count("```text")
