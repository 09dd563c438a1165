"""`serve` from a second terminal: status, top, logs, restart, stop, and a second server."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_terminal import on_screen
from tests.support.blocked import StoppedTerminal
from tests.support.processes import DEADLINE_SECONDS, free_ports, tethered
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes


def command(serve: Serve, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a second terminal with the same settings."""
    return command_in(None, serve, *arguments, **environ)


def command_in(
    directory: Path | None, serve: Serve, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: PLW1510  # its status is what tests look at
        [sys.executable, "-m", "llama_gguf", *arguments],
        env={**serve.environ, **environ},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def status(serve: Serve) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(command(serve, "status", "--json").stdout)
    return facts


def test_status_has_the_facts_and_its_exit_status_shows_whether_requests_are_served(
    serve: Serve,
) -> None:
    assert command(serve, "status").returncode == 3
    loaded = serve.folder / "loaded"
    serve.start(engine=quoted("--load-until", str(loaded)))
    serve.until(lambda: command(serve, "status").returncode == 4)
    assert status(serve)["state"] in ("starting", "loading")
    loaded.touch()
    serve.until_ready()
    assert serve.send_request(CHAT, b"{}").status == 200

    facts = status(serve)

    assert command(serve, "status").returncode == 0
    assert (facts["pid"], facts["state"]) == (serve.pid, "ready")
    assert [(r["pid"], r["address"]) for r in facts["replicas"]] == [
        (serve.engine_pid, f"127.0.0.1:{serve.port_backend}")
    ]
    assert facts["model"] == serve.send_request("/health", key="").json["model"]
    assert [key["key_id"] for key in facts["gateway"]["keys"]] == ["tester"]
    assert "protocol" in facts
    assert "POST /v1/chat" not in serve.err


def test_a_stop_from_a_second_terminal_returns_when_everything_has_ended(serve: Serve) -> None:
    serve.start_ready()

    done = command(serve, "stop")

    assert (done.returncode, serve.wait()) == (0, 0)
    assert done.stdout.endswith("Stopped.\n")
    assert not serve.processes()
    assert command(serve, "stop").returncode == 3


def test_a_stop_now_cuts_running_requests(serve: Serve) -> None:
    serve.start_ready()
    stream = serve.stream()

    assert command(serve, "stop", "--now").returncode == 0

    assert serve.wait() == 0
    assert b"[DONE]" not in stream.rest()


def test_a_restart_loses_no_request(serve: Serve, pool: ThreadPoolExecutor) -> None:
    serve.start_ready()
    engine = serve.engine_pid
    stream = serve.stream()
    restart = pool.submit(command, serve, "restart")
    serve.until_printed("Reading the settings again")
    waiting = [pool.submit(serve.send_request, CHAT, b"{}") for _ in range(3)]
    assert serve.health() == 200

    serve.end_streams()

    assert b"[DONE]" in stream.rest()
    done = restart.result()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Rolling restart complete: 1 replica\n")
    assert [response.result().status for response in waiting] == [200] * 3
    assert serve.engine_pid not in (0, engine)
    assert "died" not in serve.err


def test_a_restart_that_fails_shows_the_reason(serve: Serve) -> None:
    serve.start_ready()
    serve.write_engine("echo it is broken; exit 7")

    done = command(serve, "restart")

    assert done.returncode == 1
    assert "did not come up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_server_names_the_one_that_has_its_port(serve: Serve) -> None:
    serve.start_ready()

    done = command(serve, "serve", str(serve.model))

    assert done.returncode == 1
    assert re.search(f"pid {serve.pid}: .+, ready since", done.stderr)
    assert f"llama-gguf stop --data-dir {serve.data} --port {serve.port}" in done.stderr
    elsewhere = command(serve, "serve", str(serve.model), DATA_DIR=str(serve.folder / "other"))
    assert re.search(f"pid {serve.pid}: .+, ready since", elsewhere.stderr)


def test_a_server_that_does_not_have_the_port_is_not_blamed(serve: Serve) -> None:
    serve.start_ready()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port, health, backend = str(other.getsockname()[1]), *map(str, free_ports(2))
        ports = {"PORT": port, "PORT_HEALTH": health, "PORT_BACKEND": backend}

        done = command(serve, "serve", str(serve.model), **ports)

    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "llama-gguf stop" not in done.stderr


def test_a_server_with_a_relative_folder_is_found_from_another_directory(serve: Serve) -> None:
    elsewhere = serve.folder / "elsewhere"
    elsewhere.mkdir()
    serve.start_ready(DATA_DIR="./data")

    done = command_in(elsewhere, serve, "serve", str(serve.model), DATA_DIR="./data")

    assert re.search(f"pid {serve.pid}: .+, ready since", done.stderr)
    assert f"llama-gguf stop --data-dir {serve.data} --port {serve.port}" in done.stderr


def test_a_second_server_with_the_same_folder_is_operated_by_its_port(serve: Serve) -> None:
    serve.start_ready()
    first = serve.pid
    port, health, backend = free_ports(3)
    ports = {"PORT": str(port), "PORT_HEALTH": str(health), "PORT_BACKEND": str(backend)}
    with subprocess.Popen(
        tethered(sys.executable, "-m", "llama_gguf", "serve", str(serve.model)),
        env={**serve.environ, **ports},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as second:
        serve.until(lambda: command(serve, "status", **ports).returncode == 0)
        assert json.loads(command(serve, "status", "--json", **ports).stdout)["pid"] == second.pid
        assert status(serve)["pid"] == first
        both = dict.fromkeys(ports, "")
        assert "add --port" in command(serve, "status", **both).stderr
        assert command(serve, "stop", **ports).returncode == 0
        assert second.wait() == 0
    assert status(serve)["pid"] == first


def test_the_log_has_the_lines_of_supervisor_and_gateway_at_any_level(serve: Serve) -> None:
    serve.start("--quiet")
    serve.until(lambda: serve.out)

    shown = command(serve, "logs").stdout

    assert "llama-server started as process" in shown
    assert "API keys loaded" in shown
    assert " INFO " not in serve.err
    assert serve.out.startswith(f"Ready: http://127.0.0.1:{serve.port}/v1 serves tiny")
    assert serve.out.count("\n") == 1


def test_the_engines_own_lines_are_only_in_its_log(serve: Serve) -> None:
    serve.start_ready("--verbose")
    assert serve.send_request(CHAT, b"{}").status == 200
    serve.until_printed("tester POST /v1/chat/completions 200")

    assert " INFO    llama-server: " not in serve.err
    assert command(serve, "logs", "--engine").stdout == serve.logged()


def test_a_gateway_alone_is_operated_in_the_same_way(serve: Serve) -> None:
    serve.start_command("gateway")
    serve.until(lambda: command(serve, "status").returncode in (0, 4))

    facts = status(serve)
    assert (facts["server"], facts["pid"]) == ("gateway", serve.pid)
    assert facts["state"] == "unreachable"
    refused = command(serve, "restart")
    assert refused.returncode == 1
    assert "a gateway alone does not run llama-server" in refused.stderr
    second = command(serve, "gateway")
    assert f"pid {serve.pid}: unreachable since" in second.stderr
    assert command(serve, "stop").returncode == 0
    assert serve.wait() == 0


# A terminal ---------------------------------------------------------------------------------------


def test_a_bar_and_log_lines_of_all_processes_do_not_share_a_line(serve: Serve) -> None:
    loaded = serve.folder / "loaded"
    with StoppedTerminal(is_stopped=False) as terminal:
        serve.stdout = serve.stderr = terminal.fd
        serve.start(engine=quoted("--load-until", str(loaded)), TERM="xterm")
        shown = terminal.read_until("loading tiny")
        serve.signal(signal.SIGHUP)
        shown += terminal.read_until("API keys loaded")
        shown += terminal.read_until("loading tiny")
        loaded.touch()
        shown += terminal.read_until("Ctrl-C.")
        assert serve.stop() == 0
        terminal.close_writer()
        shown += terminal.read_rest()
    assert "\x1b[3" not in shown  # a colour: nothing is wrong
    lines = on_screen(shown)
    assert not any("loading tiny" in line for line in lines)
    log = [line for line in lines if " INFO " in line]
    assert all(re.match(r"\d\d:\d\d:\d\d INFO ", line) for line in log)
    assert len(log) > 10
    # Each erases what the bar has left on its line.
    assert len(re.findall(r"\r\x1b\[K\d\d:\d\d:\d\d INFO ", shown)) == shown.count(" INFO ")


def test_a_warning_on_a_terminal_is_coloured(serve: Serve) -> None:
    with StoppedTerminal(is_stopped=False) as terminal:
        serve.stdout = serve.stderr = terminal.fd
        serve.start(TERM="xterm", AUTH_ENABLED="false")
        assert "\x1b[33mWARNING\x1b[0m AUTH_ENABLED is false" in terminal.read_until("Ctrl-C.")
        assert serve.stop() == 0


def test_top_leaves_the_terminal_as_it_was(serve: Serve) -> None:
    serve.start_ready()
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    try:
        for key in (b"q", b"\x03"):  # q, Ctrl-C
            process = subprocess.Popen(
                [*in_terminal(), "-m", "llama_gguf", "top"],
                env={**serve.environ, "TERM": "xterm"},
                stdin=follower,
                stdout=follower,
                stderr=follower,
                start_new_session=True,
            )
            shown = b""
            while b"slots [" not in shown:
                shown += os.read(leader, 1 << 16)
            os.write(leader, key)
            assert process.wait(DEADLINE_SECONDS) == 0
            os.set_blocking(leader, False)
            with contextlib.suppress(BlockingIOError):
                while some := os.read(leader, 1 << 16):
                    shown += some
            os.set_blocking(leader, True)
            text = shown.decode()
            assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
            assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
            assert "Traceback" not in text
            assert termios.tcgetattr(follower) == before
    finally:
        os.close(leader)
        os.close(follower)


def in_terminal() -> list[str]:
    """Python, with its standard input as its controlling terminal."""
    become = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 1); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-c", become]


def test_top_prints_one_picture_where_there_is_no_terminal(serve: Serve) -> None:
    serve.start_ready()

    done = command(serve, "top")

    assert (done.returncode, done.stderr) == (0, "")
    assert "slots [" in done.stdout
    assert "\x1b" not in done.stdout
