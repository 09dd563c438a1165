"""Two real engines behind one gateway, and a rolling restart under load."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import MODEL, Served, start, stop
from tests.support.processes import free_ports, row_of_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    return {"REPLICAS": "2", "THREADS": "2", "PARALLEL": "2", "DRAIN_TIMEOUT": "60"}


@pytest.fixture
def own_server(model_file: Path, tmp_path: Path, settings: Mapping[str, str]) -> Iterator[Served]:
    """With ports for two engines and a spare one."""
    assert model_file.is_file()
    port, health = free_ports(2)
    served = start(tmp_path, settings, (port, health, row_of_ports(4)))
    try:
        served.until_ready()
        yield served
    finally:
        stop(served)


def engines(served: Served) -> set[int]:
    return {
        pid
        for pid, line in served.children().items()
        if "--model" in line and "pdeathsig.py" not in line
    }


def test_a_rolling_restart_under_load_costs_no_request(own_server: Served) -> None:
    own_server.until(lambda: own_server.output.count("The model is ready") == 2, "two replicas")
    before = engines(own_server)
    stop = threading.Event()

    def chat(number: int) -> int:
        """Streams, one after the other, each complete; raises for any error."""
        finished = 0
        with openai.OpenAI(
            base_url=own_server.base_url, api_key=own_server.key, max_retries=0
        ) as client:
            while not stop.is_set():
                chunks = client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": f"Count from {number}."}],
                    max_tokens=24,
                    stream=True,
                )
                *_, last = chunks
                assert last.choices[0].finish_reason in ("stop", "length")
                finished += 1
        return finished

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(chat, number) for number in range(6)]
        try:
            own_server.process.send_signal(signal.SIGUSR2)
            own_server.until(
                lambda: "Rolling restart complete: 2 replicas" in own_server.output, "the restart"
            )
        finally:
            stop.set()
        assert all(client.result() > 0 for client in clients)

    assert len(before) == len(engines(own_server)) == 2
    assert not before & engines(own_server)
    assert "died" not in own_server.output
    assert own_server.get("/health")[0] == 200
