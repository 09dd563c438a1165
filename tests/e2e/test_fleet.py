"""Two real engines behind one gateway: that of `serve`, and a bare llama-server in PEERS."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.engines.locate import locate
from tests.e2e.conftest import DEADLINE_SECONDS, Served, start, stop
from tests.support.clients import send_request
from tests.support.processes import free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"


@contextmanager
def llama_server(model: Path, port: int, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A llama-server as people start it on another machine."""
    found = locate("", "", environ=os.environ)
    address = ["--host", "127.0.0.1", "--port", str(port)]
    argv = [found.path, "-m", str(model), *address, "-t", "1", "--no-warmup", *flags]
    process = subprocess.Popen(
        argv,
        env={**os.environ, **found.environment_changes},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def replicas(served: Served) -> dict[str, dict[str, Any]]:
    found = served.get("/health")[1] or {}
    return {each["replica"]: each for each in found.get("replicas", ())}


def chat(served: Served, words: str) -> int:
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 4}
    made = send_request(
        served.port, CHAT, json.dumps(body).encode(), key=served.key, seconds=DEADLINE_SECONDS
    )
    return made.status


def test_a_bare_llama_server_shares_the_work_and_one_with_another_context_does_not(
    model_file: Path, tmp_path: Path
) -> None:
    ports = free_port(), free_port()
    peers = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    same, other = (f"127.0.0.1:{port}" for port in ports)
    with (
        llama_server(model_file, ports[0], "-c", "2048", "-np", "1") as peer,
        llama_server(model_file, ports[1], "-c", "1024", "-np", "1"),
    ):
        served = start(tmp_path, {"PEERS": peers})
        try:
            served.until(
                lambda: (
                    [each["state"] for each in replicas(served).values()]
                    == ["ready", "ready", "mismatch"]
                ),
                "three known replicas",
            )
            assert replicas(served)[other]["detail"].startswith("its context is 1024 tokens")
            before = replicas(served)[same]
            assert (before["slots"], before["context"]) == (1, 2048)
            assert [chat(served, f"Hello {n}.") for n in range(4)] == [200] * 4
            peer.kill()
            assert [chat(served, f"Bye {n}.") for n in range(4)] == [200] * 4
            until(
                lambda: replicas(served)[same]["state"] == "unreachable",
                lambda: str(replicas(served)),
            )
        finally:
            stop(served)
