"""Finding servers and sending commands; the server's side is in test_control_socket.py."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.supervisor import control_client
from llama_gguf.supervisor.control_client import NOT_RUNNING, NotRunning, find, servers
from llama_gguf.supervisor.control_socket import ControlSocket, Json, Report

SECONDS = 20.0


def status_of(data: Path, port: int) -> Json:
    return {
        "pid": os.getpid(),
        "port": port,
        "url": f"http://127.0.0.1:{port}",
        "data_dir": str(data),
        "state": "ready",
        "since": "2026-11-30T00:00:00+00:00",
        "model": {"name": "tiny"},
        "progress": None,
    }


@contextmanager
def running(data: Path, port: int = 8000, kind: str = "serve") -> Iterator[None]:
    """A control socket in another thread, of a *kind* of server."""
    is_open, is_over = threading.Event(), threading.Event()

    async def status(arguments: Json, report: Report) -> Json:
        return {**status_of(data, port), "server": kind}

    async def steps(arguments: Json, report: Report) -> Json:
        report("first")
        report("second")
        return {"done": arguments["n"]}

    async def refuse(arguments: Json, report: Report) -> Json:
        raise UserError("not now")

    async def serve() -> None:
        handlers = {"status": status, "steps": steps, "refuse": refuse}
        async with ControlSocket(str(data), port, handlers) as server:
            while server._opened is None:  # noqa: ASYNC110  # a fact about a thread
                await asyncio.sleep(0.01)
            is_open.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert is_open.wait(SECONDS)
    try:
        yield
    finally:
        is_over.set()
        thread.join(SECONDS)


def test_a_server_is_found_and_its_responses_are_read(tmp_path: Path) -> None:
    shown: list[str] = []
    with running(tmp_path), find(str(tmp_path)) as server:
        assert server.pid == os.getpid()
        assert server.ask("status")["state"] == "ready"
        result = server.ask("steps", on_progress=shown.append, n=3)
        assert (result["done"], shown) == (3, ["first", "second"])
        with pytest.raises(UserError, match="not now"):
            server.ask("refuse")


def test_without_a_server_the_error_names_the_folder_and_has_its_own_exit_status(
    tmp_path: Path,
) -> None:
    with pytest.raises(NotRunning, match=f"no server runs with DATA_DIR={tmp_path}") as error:
        find(str(tmp_path))
    assert error.value.exit_status == NOT_RUNNING


def test_what_is_left_of_a_server_that_was_killed_is_no_server(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "control.sock").touch()

    assert list(servers(str(tmp_path))) == []


def test_of_several_servers_the_port_chooses_one(tmp_path: Path) -> None:
    with running(tmp_path), running(tmp_path, 8010):
        with find(str(tmp_path), 8010) as server:
            assert server.ask("status")["port"] == 8010
        with find(str(tmp_path), 8000) as server:
            assert server.ask("status")["port"] == 8000
        with pytest.raises(UserError, match="add --port") as error:
            find(str(tmp_path))
        assert str(error.value).count("tiny, ready since") == 2


def test_a_server_on_another_port_is_not_taken_for_the_one_that_is_meant(tmp_path: Path) -> None:
    with running(tmp_path), pytest.raises(NotRunning, match=r"PORT=8010.*These run:\n  pid"):
        find(str(tmp_path), 8010)


def test_a_server_that_ends_is_an_error_not_a_wait(tmp_path: Path) -> None:
    with running(tmp_path):
        server = find(str(tmp_path))
    with server, pytest.raises(NotRunning, match="the server has ended"):
        server.ask("status")


def test_waiting_for_the_end_returns_when_connection_and_process_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "EXIT_SECONDS", 0.0)
    with running(tmp_path):
        server = find(str(tmp_path))
    with server:
        server.wait_for_end()
