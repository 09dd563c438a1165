"""A paused terminal, or a full pipe: only the lines on it are delayed or lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.blocked import BlockedPipe, StoppedTerminal
from tests.support.file_server import FileServer
from tests.support.gguf_files import gguf
from tests.support.processes import children, until_gone
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes

Blocked = BlockedPipe | StoppedTerminal


@pytest.fixture(params=[BlockedPipe, StoppedTerminal], ids=["pipe", "terminal"])
def blocked(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Blocked]:
    """The terminal or pipe to which ``serve`` prints."""
    with request.param() as blocked:
        serve.stdout = serve.stderr = blocked.fd
        serve.environ["TERM"] = "xterm"  # on which progress bars are shown
        yield blocked


def serves(serve: Serve) -> bool:
    return serve.health() == 200


def test_it_serves_restarts_and_stops(serve: Serve, blocked: Blocked) -> None:
    serve.start()
    serve.until(lambda: serves(serve))
    gateway, engine = serve.gateway_pid, serve.engine_pid

    os.kill(engine, signal.SIGKILL)
    serve.until(lambda: serve.engine_pid not in (0, engine))
    serve.until(lambda: serves(serve))
    os.kill(gateway, signal.SIGKILL)
    serve.until(lambda: serve.gateway_pid not in (0, gateway))

    assert serve.send_request("/ping", key="").status == 200
    assert serve.send_request(CHAT, b"{}").status == 200
    ours = (serve.gateway_pid, serve.engine_pid)
    assert serve.stop() == 0
    until_gone(*ours)


def test_a_terminal_that_was_paused_shows_everything_afterwards(
    serve: Serve,
) -> None:
    with StoppedTerminal() as terminal:
        terminal.resume()
        serve.stdout = serve.stderr = terminal.fd
        serve.start()
        shown = terminal.read_until("Ctrl-C.")
        terminal.stop()
        engine = serve.engine_pid
        os.kill(engine, signal.SIGKILL)
        serve.until(lambda: serve.engine_pid not in (0, engine))
        serve.until(lambda: serves(serve))

        terminal.resume()

        shown += terminal.read_until("Engine state: ready")
        assert serve.stop() == 0
        terminal.close_writer()
        shown += terminal.read_rest()
    died, again = shown.index("llama-server died"), shown.index("will be restarted in")
    assert shown.index("Ready:") < died < again < shown.index("Draining")
    assert "lost" not in shown


def test_an_engine_that_prints_endlessly_is_not_blocked(serve: Serve, blocked: Blocked) -> None:
    done = serve.folder / "printed"
    script = serve.engine.read_text().removeprefix("#!/bin/sh\n")
    flood = f"head -c 20000000 /dev/zero | tr '\\0' x | fold -w 100; touch {done}"
    serve.write_engine(f'case "$*" in --version | *--list-devices) ;; *) {flood} ;; esac\n{script}')

    serve.start()

    serve.until(done.exists)
    serve.until(lambda: serves(serve))
    assert serve.stop() == 0


def test_a_model_is_fetched_and_loaded_nevertheless(serve: Serve, blocked: Blocked) -> None:
    loaded = serve.folder / "loaded"
    with FileServer(gguf()) as server:
        load_until = quoted("--load-until", str(loaded))
        serve.start_command("serve", server.url(), EXTRA_ARGS=load_until)
        serve.until(lambda: serve.engine_state() == "loading")
    loaded.touch()
    serve.until(lambda: serves(serve))

    assert serve.stop() == 0


def test_a_stop_while_a_model_is_fetched_is_a_clean_end(serve: Serve, blocked: Blocked) -> None:
    with FileServer(gguf()) as server:
        server.behaviour.stops_after = 10
        serve.start_command("serve", server.url())
        part = serve.data / "models" / "m.gguf.part"
        serve.until(part.exists)
        fetching = [pid for pid, command in children(serve.pid).items() if " pull " in command]

        assert serve.stop() == 0
    until_gone(*fetching)
