"""``serve`` with a model on a hub: downloaded at the start, resumed, kept."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND, Served, stop
from tests.support.hub_server import REPO, HubServer
from tests.support.processes import free_ports, is_running

pytestmark = pytest.mark.e2e

TOKEN = "hf_" + "t" * 34


@pytest.fixture
def hub(model_file: Path) -> Iterator[HubServer]:
    content = model_file.read_bytes()
    with HubServer({"q/Tiny-Q4_1.gguf": content, "Tiny-Q8_0.gguf": content}) as running:
        running.does.token = TOKEN
        # A multiple of the size of one read.
        running.does.pause_at = len(content) // 2 >> 20 << 20
        yield running


def start(data_dir: Path, endpoint: str) -> Served:
    port, port_health, port_backend = free_ports(3)
    served = Served(None, data_dir, port, port_health, port_backend, "")  # type: ignore[arg-type]
    environ = {
        **os.environ,
        "DATA_DIR": str(data_dir),
        "HOST": "127.0.0.1",
        "PORT": str(served.port),
        "PORT_HEALTH": str(served.port_health),
        "PORT_BACKEND": str(served.port_backend),
        "MODEL_NAME": f"hf:{REPO}:Q4_1",
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": TOKEN,
        "HEALTH_MODE": "ready",
        "CTX": "512",
        "THREADS": "1",
    }
    with (data_dir / "output.txt").open("wb") as output:
        served.process = subprocess.Popen(
            [*COMMAND, "serve", "--create-key"],
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return served


def engine_detail(served: Served) -> Any:
    return (served.get("/health")[1] or {}).get("engine", {}).get("detail", "")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_model_is_downloaded_once_even_if_the_server_dies_repeatedly(
    hub: HubServer, tmp_path: Path
) -> None:
    half = hub.does.pause_at
    part = tmp_path / "models" / "Tiny-Q4_1.gguf.part"

    # Killed during the download: the part stays, and no process continues to write.
    first = start(tmp_path, hub.endpoint)
    try:
        first.until(lambda: size(part) == half, "half of the model")
        first.until(lambda: "fetching the model: " in engine_detail(first), "how far it is")
        pull = first.child(" pull ")
        assert pull
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    finally:
        stop(first)
    assert size(part) == half
    hub.does.pause_at = 0
    hub.requests.clear()

    second = start(tmp_path, hub.endpoint)
    try:
        second.until_ready()
        assert second.get("/health")[1]["model"]["name"] == "Tiny-Q4_1"
        assert engine_detail(second) == ""
    finally:
        assert stop(second) == 0
    assert [a.range for a in hub.requests_for("Signature")] == [f"bytes={half}-"]
    assert not is_running(pull)
    hub.requests.clear()

    # Now it is complete, and no server is contacted: there may be no network.
    third = start(tmp_path, "http://127.0.0.1:1")
    try:
        third.until_ready()
    finally:
        assert stop(third) == 0
    assert hub.requests == []
    assert TOKEN not in third.output
