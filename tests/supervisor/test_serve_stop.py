"""Signals: what is finished, what is cut, which processes remain."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.processes import children, is_running, until_gone
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes

DONE = b"data: [DONE]"


def files_in(folder: Path) -> set[str]:
    """Every file by folder and kind, since most logs have a time in their names."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        str(p.parent.relative_to(folder) / ("*.log" if p.name[:4].isdigit() else p.name))
        for p in files
    }


def test_sigterm_finishes_running_requests_rejects_new_ones_and_leaves_nothing(
    serve: Serve,
) -> None:
    serve.start_ready()
    gateway, engine = serve.gateway_pid, serve.engine_pid
    stream = serve.stream()

    serve.signal(signal.SIGTERM)
    serve.until_printed("Draining")

    assert serve.health() == 503
    refused = serve.send_request(CHAT, b"{}")
    assert (refused.status, refused.json["error"]["code"]) == (503, "draining")
    assert is_running(engine)
    serve.end_streams()
    assert DONE in stream.rest()
    assert serve.wait() == 0
    assert not is_running(gateway)
    assert not is_running(engine)
    usage = f"usage/{socket.gethostname()}.json"
    assert files_in(serve.data) - {usage, f"{usage}.lock"} == {
        *("api_keys.txt", "logs/api_access.log", "logs/llama/*.log"),
        *("logs/_boot/*.log", "logs/_boot/latest.txt", "run/control.sock.lock"),
    }
    assert "Traceback" not in serve.err


def test_sigint_is_a_clean_end_too(serve: Serve) -> None:
    serve.start_ready()
    gateway, engine = serve.gateway_pid, serve.engine_pid

    serve.signal(signal.SIGINT)

    assert serve.wait() == 0
    until_gone(gateway, engine)
    assert "Traceback" not in serve.err


def test_a_closed_terminal_is_a_clean_end(serve: Serve) -> None:
    master, serve.terminal = os.openpty()
    try:
        serve.start_ready()
    finally:
        os.close(serve.terminal)
    gateway, engine = serve.gateway_pid, serve.engine_pid

    serve.signal(signal.SIGHUP)  # the terminal is there: a reload
    serve.until(lambda: serve.err.count("API keys loaded") == 2)
    os.close(master)

    assert serve.wait() == 0
    until_gone(gateway, engine)
    assert "The terminal was closed" in serve.err
    assert "Second signal" not in serve.err
    assert "Traceback" not in serve.err


def test_requests_that_still_run_after_drain_timeout_are_cut(serve: Serve) -> None:
    serve.start_ready(DRAIN_TIMEOUT="0.1")
    stream = serve.stream()

    assert serve.stop() == 0

    assert DONE not in stream.rest()
    assert "cut after DRAIN_TIMEOUT" in serve.err


def test_sigterm_during_a_load_is_a_clean_end_and_waiting_requests_get_503(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    serve.start(engine="--hang-at-load", DRAIN_TIMEOUT="0.3")
    serve.until(lambda: serve.engine_state() == "loading")
    gateway, engine = serve.gateway_pid, serve.until(lambda: serve.engine_pid)
    waiting = pool.submit(serve.send_request, CHAT, b"{}")
    serve.until(lambda: serve.send_request("/health", key="").json["queue"]["length"] == 1)

    serve.signal(signal.SIGTERM)

    response = waiting.result()
    assert (response.status, response.json["error"]["code"]) == (503, "draining")
    assert serve.wait() == 0
    until_gone(gateway, engine)
    assert "died" not in serve.err
    assert "Traceback" not in serve.err


def test_health_stays_unready_when_the_load_ends_after_sigterm(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    loaded = serve.folder / "loaded"
    serve.start(engine=quoted("--load-until", str(loaded)))
    serve.until(lambda: serve.engine_state() == "loading")
    pool.submit(serve.stream)
    serve.until(lambda: serve.send_request("/health", key="").json["queue"]["length"] == 1)
    serve.signal(signal.SIGTERM)
    serve.until_printed("Draining")
    serve.until(lambda: serve.health() == 503)

    loaded.touch()
    serve.until_printed("The model is ready")

    assert serve.health() == 503
    assert "Ready:" not in serve.out


def test_sigterm_between_two_starts_of_the_engine_is_a_clean_end(serve: Serve) -> None:
    serve.start_ready(engine="--die-on /tokenize")
    gateway = serve.gateway_pid
    assert serve.send_request("/tokenize", b"{}").status == 502
    serve.until_printed("llama-server will be restarted in")

    assert serve.stop() == 0

    until_gone(gateway)
    assert "Traceback" not in serve.err


def test_sighup_reloads_the_keys_and_restarts_no_process(serve: Serve) -> None:
    serve.start_ready()
    gateway, engine = serve.gateway_pid, serve.engine_pid
    other = "sk-another-key-of-the-tests"
    assert serve.send_request(CHAT, b"{}", key=other).status == 401
    stream = serve.stream()

    serve.keys_file.write_text(f"other:{other}\n")
    serve.signal(signal.SIGHUP)

    serve.until(lambda: serve.send_request(CHAT, b"{}", key=other).status == 200)
    assert serve.send_request(CHAT, b"{}").status == 401
    serve.end_streams()
    assert DONE in stream.rest()
    assert (serve.gateway_pid, serve.engine_pid) == (gateway, engine)


def test_sighup_while_the_gateway_starts_does_not_end_it(serve: Serve) -> None:
    serve.start(engine=quoted("--load-until", str(serve.folder / "never")))
    serve.until(lambda: any("listen-fd" in c for c in children(serve.pid).values()))

    serve.signal(signal.SIGHUP)

    # The gateway has no handler yet: the signal would end it.
    serve.until(lambda: serve.engine_state() == "loading")


def test_after_the_gateways_exit_no_connection_is_accepted(serve: Serve) -> None:
    serve.start_ready(engine="--ignore-sigterm")
    gateway, engine = serve.gateway_pid, serve.engine_pid

    serve.signal(signal.SIGTERM)

    until_gone(gateway)
    assert is_running(engine)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", serve.port), 5).close()


# A model that is being fetched --------------------------------------------------------------------


class _NeverDone(BaseHTTPRequestHandler):
    """Announces a model, and sends only its first bytes."""

    stop = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"GGUF")
        self.stop.wait(30)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def slow_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NeverDone)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/m.gguf"
    finally:
        _NeverDone.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_sigterm_while_the_model_is_fetched_ends_the_fetching(serve: Serve, slow_url: str) -> None:
    serve.start_command("serve", slow_url)
    serve.until(lambda: serve.engine_state() == "starting")
    fetching = serve.until(lambda: [p for p, c in children(serve.pid).items() if " pull " in c])

    serve.signal(signal.SIGTERM)

    assert serve.wait() == 0
    until_gone(*fetching)
