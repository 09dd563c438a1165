"""The client libraries of users, each with the real engine behind the gateway.

They determine what a user sees: the error for a wrong key in that library, and whether a cut stream
is noticed. Each client is a program in ``tests/e2e/clients`` that tries everything once; they have
a separate environment, created once in .cache from ``locks/clients.txt`` and
``clients/node/package-lock.json``.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.conftest import MODEL, ROOT, Served
from tests.support.engines import ScriptedEngine, Visit
from tests.support.gateways import Processes
from tests.support.keys import KEY
from tests.support.messages import request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CACHE: Final = ROOT / ".cache"
NODE_FILES: Final = ROOT / "tests" / "e2e" / "clients" / "node"
LIMITED: Final = "sk-admits-one-request-a-minute-"

WRONG_KEY: Final = {
    "openai_sync": "AuthenticationError: Error code: 401",
    "openai_async": "AuthenticationError: Error code: 401",
    "openai_node": "AuthenticationError: 401",
    "anthropic_sdk": "AuthenticationError: Error code: 401",
    "langchain": "OpenAIAuthenticationError: Error code: 401",
    "litellm_client": "AuthenticationError: litellm.AuthenticationError",
    "llm_command": "LlmError: Error: Error code: 401",
    "curl": "CurlError: curl: (22) The requested URL returned error: 401",
}
"""The beginning of each client's error for a wrong key."""
CLIENTS: Final = list(WRONG_KEY)
OVER_LIMIT: Final = {
    name: text.replace("Authentication", "RateLimit").replace("401", "429")
    for name, text in WRONG_KEY.items()
    if name != "llm_command"  # it waits for the stated delay, and retries
}
"""The beginning of each client's error for a key over its rate limit."""

Tried = Mapping[str, Any]


# Their environments -------------------------------------------------------------------------------


def installed(folder: Path, lock: Path, install: Callable[[], None]) -> None:
    """Run *install* unless *folder* was created from the current *lock*; one process at a time."""
    stamp = folder / ".lock"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as waits:
        fcntl.flock(waits, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == digest:
            return
        shutil.rmtree(folder, ignore_errors=True)
        install()
        stamp.write_text(digest)


def python_of_clients() -> Path:
    folder, lock = CACHE / "clients", ROOT / "locks" / "clients.txt"
    python = folder / "bin" / "python"

    def install() -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True, timeout=500)

    installed(folder, lock, install)
    return python


def node_program() -> Path:
    """The program for Node, next to the package that it needs."""
    folder, lock = CACHE / "node", NODE_FILES / "package-lock.json"

    def install() -> None:
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE_FILES / name, folder)
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(npm, cwd=folder, check=True, timeout=300)

    installed(folder, lock, install)
    shutil.copy(NODE_FILES / "openai.mjs", folder)
    return folder / "openai.mjs"


# An engine that breaks off ------------------------------------------------------------------------


def event(kind: str, **facts: object) -> bytes:
    data = json.dumps({"type": kind, **facts})
    return f"event: {kind}\ndata: {data}\n\n".encode()


CHAT_EVENT: Final = b"data: " + json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}],
    }
).encode() + b"\n\n"  # fmt: skip
MESSAGE_EVENTS: Final = b"".join(
    [
        event(
            "message_start",
            message={
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": MODEL,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        ),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
    ]
)
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def break_off(visit: Visit, *, within: bool) -> None:
    """Begin a stream and die: between two events, or *within* one."""
    events = MESSAGE_EVENTS if b" /v1/messages" in visit.head else CHAT_EVENT
    if within:
        events += b"data: {"
    visit.finish(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(events), events))


def break_every_stream(engine: ScriptedEngine, is_over: threading.Event) -> None:
    within = False
    while not is_over.wait(0.01):
        if engine.has_visit:
            break_off(engine.visit(), within=within)
            within = not within


@pytest.fixture(scope="module")
def broken_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway whose engine dies during its response."""
    is_over = threading.Event()
    processes = Processes(tmp_path_factory.mktemp("broken"))
    with ScriptedEngine() as engine:
        gateway = processes.gateway(("127.0.0.1", engine.port))
        thread = threading.Thread(target=break_every_stream, args=(engine, is_over))
        thread.start()
        yield f"http://127.0.0.1:{gateway.port}"
        is_over.set()
        thread.join()
        processes.close()


# The programs -------------------------------------------------------------------------------------


def add_limited_keys(served: Served) -> None:
    """A key for each client, with a limit of one request per minute."""
    path = served.data_dir / "api_keys.txt"
    lines = "".join(f"limited-{name}:{LIMITED}{name}:1\n" for name in CLIENTS)
    path.write_text(lines + path.read_text())
    with served.wire() as wire:
        wire.send(request("POST", "/reload", key=served.key))
        assert wire.response().status == 200


TryClient = Callable[[str], Tried]


@pytest.fixture(scope="module")
def try_client(
    served: Served, broken_url: str, tmp_path_factory: pytest.TempPathFactory
) -> TryClient:
    """Runs a program once, and returns its outcome."""
    add_limited_keys(served)
    home = tmp_path_factory.mktemp("home")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LLM_USER_PATH": str(home),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise its import connects to the internet
        "MODEL": MODEL,
        "BASE_URL": f"http://127.0.0.1:{served.port}",
        "KEY": served.key,
        "BROKEN_URL": broken_url,
        "BROKEN_KEY": KEY,
    }

    @functools.cache
    def try_it(name: str) -> Tried:
        done = subprocess.run(
            command_of(name),
            cwd=ROOT,
            env=environ | {"LIMITED_KEY": LIMITED + name},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        tried: Tried = json.loads(done.stdout)
        return tried

    return try_it


def command_of(name: str) -> list[str]:
    if name == "openai_node":
        if shutil.which("npm") is None and "CI" not in os.environ:
            pytest.skip("there is no npm here, so the client for Node is not tried")
        return ["node", str(node_program())]
    return [str(python_of_clients()), "-m", f"tests.e2e.clients.{name}"]


# What users see -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIENTS)
def test_a_chat_gets_a_response(try_client: TryClient, name: str) -> None:
    (response,) = try_client(name)["chat"]["pieces"]

    assert response.strip()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_stream_comes_in_pieces_and_ends(try_client: TryClient, name: str) -> None:
    stream = try_client(name)["stream"]

    assert stream["error"] is None
    assert len(stream["pieces"]) > 1


@pytest.mark.parametrize("name", CLIENTS)
def test_a_wrong_key_is_reported_as_such(try_client: TryClient, name: str) -> None:
    refused = try_client(name)["wrong_key"]

    assert f"{refused['error']}: {refused['message']}".startswith(WRONG_KEY[name])


@pytest.mark.parametrize("name", OVER_LIMIT)
def test_a_key_over_its_rate_limit_is_reported_as_such(try_client: TryClient, name: str) -> None:
    tried = try_client(name)

    assert tried["within_limit"]["error"] is None
    refused = tried["over_limit"]
    assert f"{refused['error']}: {refused['message']}".startswith(OVER_LIMIT[name])


@pytest.mark.parametrize("how", ["cut_between_events", "cut_within_an_event"])
@pytest.mark.parametrize("name", CLIENTS)
def test_a_cut_stream_is_not_mistaken_for_a_complete_one(
    try_client: TryClient, name: str, how: str
) -> None:
    cut = try_client(name)[how]

    assert "Hello" in "".join(cut["pieces"])
    assert cut["error"] is not None
