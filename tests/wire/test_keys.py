"""Changes of the keys file while a gateway runs."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEY, KEYS_TEXT, OTHER_KEY
from tests.support.messages import STREAM_HEAD, request
from tests.support.processes import until

NEW = "sk-new-0123456789abc"
MODELS = ("GET", "/v1/health")


def status(gateway: GatewayProcess, key: str) -> int:
    return gateway.send_request(request(*MODELS, key=key)).status


def until_loaded(gateway: GatewayProcess) -> None:
    """Wait until the file with one key is read; failed attempts are limited, so none is made."""
    until(lambda: loads_of(gateway, 1) > 0, "the new file is read")


def loads_of(gateway: GatewayProcess, keys: int) -> int:
    """How often the log reports that *keys* were loaded."""
    return len(re.findall(rf"API keys loaded from .*: {keys}$", gateway.log, re.MULTILINE))


def put_in_place(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(text)
    os.replace(beside, path)


@pytest.fixture
def gateway(processes: Processes) -> GatewayProcess:
    return processes.gateway(processes.fake_llama().address)


def test_a_changed_file_is_reloaded_automatically(gateway: GatewayProcess) -> None:
    put_in_place(gateway.keys_file, f"new:{NEW}\n")

    until_loaded(gateway)
    assert status(gateway, NEW) == 200
    assert status(gateway, KEY) == 401


def test_a_file_that_is_written_in_place_is_reloaded_automatically(gateway: GatewayProcess) -> None:
    gateway.keys_file.write_text(f"new:{NEW}\n")

    until_loaded(gateway)
    assert status(gateway, NEW) == 200


def test_a_secret_of_kubernetes_is_reloaded_when_its_folder_is_replaced(
    processes: Processes, tmp_path: Path
) -> None:
    mount = tmp_path / "mount"
    for name, text in (("v1", KEYS_TEXT), ("v2", f"new:{NEW}\n")):
        (mount / name).mkdir(parents=True)
        (mount / name / "api_keys.txt").write_text(text)
    (mount / "..data").symlink_to("v1")
    (mount / "api_keys.txt").symlink_to("..data/api_keys.txt")
    gateway = processes.gateway(
        processes.fake_llama().address, AUTH_KEYS_FILE=mount / "api_keys.txt"
    )
    assert status(gateway, KEY) == 200
    (mount / "next").symlink_to("v2")
    os.replace(mount / "next", mount / "..data")

    until_loaded(gateway)
    assert status(gateway, NEW) == 200
    assert status(gateway, KEY) == 401


def test_the_keys_of_a_deleted_file_stay_valid_and_its_absence_is_logged(
    gateway: GatewayProcess,
) -> None:
    gateway.keys_file.unlink()

    until(lambda: "there is no keys file" in gateway.log, "it is logged")
    assert status(gateway, KEY) == 200


def test_reloads_under_load_drop_nothing(gateway: GatewayProcess) -> None:
    """All ways to reload at once, while alice sends requests and bob reads a stream."""
    statuses: list[int] = []

    def send_request() -> None:
        with gateway.connect() as wire:
            for _ in range(150):
                wire.send(request(body=b"{}"))
                statuses.append(wire.response().status)

    with gateway.connect() as stream:
        stream.send(request("POST", "/v1/completions", "x-events: 200", "x-tick-ms: 5",
                            body=b'{"stream":true}', key=OTHER_KEY))  # fmt: skip
        stream.read_until(b"\r\n\r\n")
        threads = [threading.Thread(target=send_request) for _ in range(4)]
        for thread in threads:
            thread.start()
        changes = 0
        while any(thread.is_alive() for thread in threads):
            changes += 1
            put_in_place(gateway.keys_file, KEYS_TEXT + f"more-{changes}:{NEW}\n")
            gateway.signal(signal.SIGHUP)
            assert gateway.send_request(request("POST", "/reload")).status == 200
        for thread in threads:
            thread.join()
        stream.buffer = STREAM_HEAD + stream.buffer
        whole = stream.response()

    assert statuses == [200] * 600
    assert len(whole.chunks) == 201, "200 events and [DONE]"
    assert whole.is_whole
    assert loads_of(gateway, 4) >= changes
