"""Budgets of keys outlive the gateway that counts them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEY
from tests.support.messages import Response, code_of, request
from tests.support.processes import until

BODY = b'{"max_tokens": 60}'


@pytest.fixture
def start(processes: Processes, tmp_path: Path) -> Callable[[], GatewayProcess]:
    """Starts a gateway, each time with the same folder and name."""
    engine = processes.fake_llama().address
    data = tmp_path / "data"
    data.mkdir()
    data.joinpath("api_keys.txt").write_text(f"alice:{KEY} tokens_per_month=100\n")
    return lambda: processes.gateway(
        engine, DATA_DIR=data, LOG_DIR=data / "logs", INSTANCE_ID="same"
    )


Start = Callable[[], GatewayProcess]


def use_up(gateway: GatewayProcess) -> None:
    """The engine reports no figures, so that each request counts by its estimate, 64 tokens."""
    assert [post(gateway).status for _ in range(3)] == [200, 200, 429]


def post(gateway: GatewayProcess) -> Response:
    return gateway.send_request(request(body=BODY))


def budgets_file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "budgets" / "same.json"


def test_a_restart_without_logs_reopens_no_budget(start: Start, tmp_path: Path) -> None:
    gateway = start()
    use_up(gateway)
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    for folder in ("logs", "usage"):
        shutil.rmtree(tmp_path / "data" / folder)

    refused = post(start())

    assert code_of(refused) == "insufficient_quota"
    assert refused["x-ratelimit-remaining-tokens"] == "0"


def test_a_gateway_that_is_killed_reopens_no_budget(start: Start, tmp_path: Path) -> None:
    gateway = start()
    use_up(gateway)
    path = budgets_file(tmp_path)
    until(lambda: path.exists() and ":128}" in path.read_text(), "what was used is saved")
    gateway.signal(signal.SIGKILL)
    gateway.wait()

    assert code_of(post(start())) == "insufficient_quota"


def test_a_deleted_file_is_written_again_by_the_gateway_that_runs(
    start: Start, tmp_path: Path
) -> None:
    gateway = start()
    use_up(gateway)
    path = budgets_file(tmp_path)
    until(path.exists, "what was used is saved")
    path.unlink()
    until(path.exists, "it is saved again")

    assert code_of(post(gateway)) == "insufficient_quota"
    assert ":128}" in path.read_text()


def test_a_file_that_cannot_be_read_is_renamed_and_reported(start: Start, tmp_path: Path) -> None:
    path = budgets_file(tmp_path)
    path.parent.mkdir()
    path.write_text("not ours")

    gateway = start()

    assert post(gateway).status == 200
    assert path.with_name("same.json.unreadable").read_text() == "not ours"
    assert f"The budgets in {path} cannot be read" in gateway.log
