"""Each panel of the Grafana dashboard, through a real Prometheus, under load and failures."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import Served, start, stop
from tests.e2e.prometheus import DEPLOY, Prometheus, needs_prometheus
from tests.support.clients import Wire
from tests.support.messages import request
from tests.support.processes import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), needs_prometheus]

# One slot and two places in the queue, so that a few clients fill both.
ONLY_SOMETIMES: Final = re.compile(
    r"_replays_|_session_moves_|_replica_(?:errors|refusals|ejections)_"
)
SETTINGS: Final = {
    "PARALLEL": "1",
    "MAX_QUEUE_SIZE": "2",
    "AUTH_FAILURES_PER_MINUTE": "0",  # all clients have one address
}
CHAT: Final = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":%d,"stream":true}'
PATIENCE: Final = 90.0


def queries() -> dict[str, str]:
    """Each query of the dashboard, with the title of its panel."""
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    found = {t["expr"]: p["title"] for p in board["panels"] for t in p.get("targets", [])}
    variables = {"$__rate_interval": "10s", "$job": ".*", "$instance": ".*"}
    for variable, value in variables.items():
        found = {query.replace(variable, value): title for query, title in found.items()}
    return found


def chat(served: Served, key: str) -> None:
    with Wire(served.address) as wire:
        wire.send(request(body=CHAT % 16, key=key))
        wire.response()


def leave(served: Served, key: str) -> None:
    """Disconnect during a stream."""
    with Wire(served.address) as wire:
        wire.send(request(body=CHAT % 200, key=key))
        if b" 200 " in wire.read_until(b"\r\n\r\n"):  # otherwise it was rejected
            wire.read_until(b"data: ")


@contextmanager
def stream(served: Served) -> Iterator[None]:
    """A stream that has begun, whose client waits for its end after the block."""
    while True:
        with Wire(served.address) as wire:
            wire.send(request(body=CHAT % 400, key=served.key))
            if b" 200 " in wire.read_until(b"\r\n\r\n"):  # otherwise it was rejected
                wire.read_until(b"data: ")
                yield
                wire.was_reset()  # reads to the end, which the death of the engine brings
                return


@contextmanager
def load(served: Served) -> Iterator[None]:
    """Clients that wait, are rejected, leave, and send a wrong key, until the end of the block."""
    has_ended = threading.Event()
    key = served.key

    def client(act: Callable[[Served, str], None], key: str) -> None:
        while not has_ended.is_set():
            with suppress(OSError, AssertionError):  # refused or cut while there is no gateway
                act(served, key)
            has_ended.wait(0.1)

    with ThreadPoolExecutor() as pool:
        clients = [
            *(pool.submit(client, chat, key) for _ in range(3)),
            pool.submit(client, leave, key),
            pool.submit(client, chat, "wrong"),
        ]
        try:
            yield
        finally:
            has_ended.set()
    for ended in clients:
        ended.result()


def test_every_panel_shows_load_failures_and_restarts(model_file: Path, tmp_path: Path) -> None:
    assert model_file.is_file()
    served = start(tmp_path, SETTINGS)
    (folder := tmp_path / "prometheus").mkdir()
    prometheus = Prometheus(folder, served.port)
    try:
        served.until_ready()
        with load(served):
            until(lambda: prometheus.value("sum(llama_gguf_requests_in_flight)"), "load")
            with stream(served):
                os.kill(served.child("llama-server"), signal.SIGKILL)
            served.until(lambda: "signal SIGKILL" in served.output, "a death of the engine")
            served.until_ready()

            def are_blank() -> dict[str, str]:
                """The queries, by panel, of which every value is zero or missing.

                Whether a request is sent again depends on the moment of the death; sessions do not
                move, and replicas are not ejected, where there is one.
                """
                return {
                    query: title
                    for query, title in queries().items()
                    if not ONLY_SOMETIMES.search(query)
                    and not any(prometheus.values(query, seconds=300))
                }

            until(lambda: not are_blank(), lambda: str(are_blank()), seconds=PATIENCE)
            stop(served)
            served = start(
                tmp_path, SETTINGS, (served.port, served.port_health, served.port_backend)
            )
            until(lambda: prometheus.value("changes(process_start_time_seconds[5m])"), "a restart")
            served.until_ready()
        assert {0.0, 1.0} <= set(prometheus.values("llama_gguf_backend_up", seconds=300))
        rates = [query for query in queries() if "rate(" in query or "increase(" in query]
        for query in rates:
            # A restart resets counters; none of their rates may become negative or huge.
            assert all(0 <= n < 1e9 for n in prometheus.values(query, seconds=300)), query
    finally:
        prometheus.close()
        stop(served)
