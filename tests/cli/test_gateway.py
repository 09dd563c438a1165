from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_gguf.cli.main import main
from tests.support.blocked import BlockedPipe, StoppedTerminal
from tests.support.certificates import issue
from tests.support.clients import send_request, status_or_none
from tests.support.engines import FAKE_LLAMA
from tests.support.keys import KEY
from tests.support.processes import DEADLINE_SECONDS, free_ports, tethered, until
from tests.support.serve import CHAT, in_terminal


@contextmanager
def running(
    *argv: str, environ: dict[str, str], stderr: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(tethered(sys.executable, *argv), env=environ, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_internal_flags_are_not_in_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["gateway", "--help"], {})

    shown = capsys.readouterr().out
    assert "fd" not in shown.replace("fdatasync", "")


@pytest.mark.parametrize(
    ("host", "backend_host"), [("::", "127.0.0.1"), ("localhost", "::1"), ("10.0.0.1",) * 2]
)
def test_it_does_not_forward_requests_to_itself(
    capsys: pytest.CaptureFixture[str], host: str, backend_host: str
) -> None:
    environ = {"HOST": host, "BACKEND_HOST": backend_host, "PORT": "18080"}

    assert main(["gateway", "--port-backend", "18080"], environ) == 2

    assert capsys.readouterr().err == (
        "llama-gguf: PORT and PORT_BACKEND are both 18080, on this machine: the gateway would "
        "forward requests to itself. Set PORT_BACKEND to the port of llama-server.\n"
        "PORT is set in the environment.\nPORT_BACKEND is set by a flag.\n"
    )


@pytest.mark.processes
def test_it_can_start_before_its_engine(tmp_path: Path) -> None:
    port, port_backend = free_ports(2)
    (tmp_path / "api_keys.txt").write_text(f"tester:{KEY}\n")
    environ = {
        "DATA_DIR": str(tmp_path),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_BACKEND": str(port_backend),
        "BACKEND_API_KEY": "the-engine's-own",
    }
    with running("-m", "llama_gguf", "gateway", environ=environ) as gateway:
        until(lambda: status_or_none(port) == 200)
        assert send_request(port, "/health", key="").status == 503
        engine = (str(FAKE_LLAMA), "--port", str(port_backend))
        with running(*engine, environ={"LLAMA_API_KEY": "the-engine's-own"}):
            until(lambda: send_request(port, "/health", key="").status == 200)
            assert send_request(port, CHAT, b'{"a": 1}').json == {"echo": '{"a": 1}'}
            assert send_request(port, CHAT, b"{}", key="").status == 401

            gateway.send_signal(signal.SIGTERM)

            assert gateway.wait(DEADLINE_SECONDS) == 0


@pytest.mark.processes
@pytest.mark.parametrize("kind", [BlockedPipe, StoppedTerminal])
def test_a_blocked_terminal_does_not_block_the_gateway(
    tmp_path: Path, kind: type[BlockedPipe | StoppedTerminal]
) -> None:
    port, port_backend = free_ports(2)
    (tmp_path / "api_keys.txt").write_text(f"tester:{KEY}\n")
    engine = (str(FAKE_LLAMA), "--port", str(port_backend))
    environ = {
        "DATA_DIR": str(tmp_path),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_BACKEND": str(port_backend),
        "BACKEND_API_KEY": "x",
        "MAX_QUEU_SIZE": "5",  # causes a warning
    }
    argv = ("-m", "llama_gguf", "gateway")
    with (
        kind() as blocked,
        running(*engine, environ={"LLAMA_API_KEY": "x"}),
        running(*argv, environ=environ, stderr=blocked.fd) as gateway,
    ):
        until(lambda: status_or_none(port) == 200)
        until(lambda: send_request(port, "/health", key="").status == 200)
        assert send_request(port, CHAT, b'{"a": 1}').status == 200
        (tmp_path / "api_keys.txt").write_text(f"other:{KEY}2\n")
        gateway.send_signal(signal.SIGHUP)  # it then logs that it has read the keys
        until(lambda: send_request(port, CHAT, b"{}").status == 401)

        gateway.send_signal(signal.SIGTERM)

        assert gateway.wait(DEADLINE_SECONDS) == 0


def test_a_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = {"DATA_DIR": str(tmp_path), "HOST": "127.0.0.1", "PORT": str(port)}

        assert main(["gateway"], environ) == 1

    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_an_invalid_certificate_prevents_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    environ = {"DATA_DIR": str(tmp_path), "HOST": "127.0.0.1", "PORT": str(port)}
    environ |= issue().write(tmp_path) | {"TLS_KEY_FILE": "/nowhere/key.pem"}

    assert main(["gateway"], environ) == 2

    assert "TLS_KEY_FILE=/nowhere/key.pem cannot be used: No such file" in capsys.readouterr().err


@pytest.mark.processes
def test_it_stops_when_its_terminal_is_closed(tmp_path: Path) -> None:
    (tmp_path / "api_keys.txt").write_text(f"tester:{KEY}\n")
    port = free_ports(1)[0]
    environ = {"DATA_DIR": str(tmp_path), "HOST": "127.0.0.1", "PORT": str(port)}
    master, slave = os.openpty()
    with subprocess.Popen(
        in_terminal("-m", "llama_gguf", "gateway"),
        env=environ,
        stdin=slave,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as gateway:
        os.close(slave)
        until(lambda: status_or_none(port) == 200)
        os.close(master)

        assert gateway.stderr is not None
        assert b"The terminal was closed" in gateway.stderr.read()
    assert gateway.returncode == 0
