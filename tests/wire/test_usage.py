"""The usage of keys, with gateways that share a file, and with failing disks."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEYS_TEXT
from tests.support.messages import request
from tests.support.processes import until


def requests_of(gateway: GatewayProcess) -> int:
    usage: dict[str, Any] = json.loads(gateway.send_request(request("GET", "/usage")).body)
    total: dict[str, int] = usage["keys"][0]["total"]
    return total["requests"]


def send_request(gateway: GatewayProcess, times: int) -> None:
    with gateway.connect() as wire:
        for _ in range(times):
            wire.send(request(body=b"{}"))
            assert wire.response().status == 200


def stop(gateway: GatewayProcess) -> None:
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0


@pytest.fixture
def start(processes: Processes, tmp_path: Path) -> Callable[[], GatewayProcess]:
    """Starts a gateway, each time with the same folder and name."""
    engine = processes.fake_llama().address
    data = tmp_path / "data"
    data.mkdir()
    data.joinpath("api_keys.txt").write_text(KEYS_TEXT)
    return lambda: processes.gateway(engine, DATA_DIR=data, INSTANCE_ID="same")


Start = Callable[[], GatewayProcess]


def test_the_counts_of_two_gateways_with_one_folder_are_added(start: Start) -> None:
    gateways = start(), start()
    for gateway in gateways:
        send_request(gateway, 10)
    for gateway in gateways:
        stop(gateway)

    assert requests_of(start()) == 20


def test_usage_that_could_not_be_written_is_written_later(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "usage"
    folder.write_text("a file where the folder should be")
    gateway = start()
    send_request(gateway, 3)
    until(lambda: "The usage cannot be saved" in gateway.log, "a write fails")
    folder.unlink()
    stop(gateway)

    assert requests_of(start()) == 3
