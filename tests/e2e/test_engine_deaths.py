"""What the real llama-server writes when it dies of its flags, and what we say about it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_gguf.engines.exit_reasons import explain
from llama_gguf.engines.locate import locate
from tests.e2e.conftest import DEADLINE_SECONDS
from tests.support import tiny_models
from tests.support.clients import Wire
from tests.support.processes import free_port
from tests.support.rpc import rpc_server

pytestmark = pytest.mark.e2e

LAST_LINES = 40
TRIES = 10


@contextmanager
def engine(
    model: Path,
    socket: Path,
    *flags: str,
    max_kib: int | None = None,
    **environ: str,
) -> Iterator[subprocess.Popen[str]]:
    found = locate("", "", environ=os.environ)
    limit = [] if max_kib is None else ["sh", "-c", f'ulimit -v {max_kib}; exec "$@"', "sh"]
    socket.unlink(missing_ok=True)
    process = subprocess.Popen(
        [*limit, found.path, "-m", model, "-c", "512", "--host", socket, "--no-warmup", *flags],
        env={**os.environ, **found.environment_changes, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def explanation(process: subprocess.Popen[str]) -> str:
    """What we say about the death of *process*."""
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    return " ".join(explain(process.returncode, output.splitlines()[-LAST_LINES:]))


def explained(
    model: Path, socket: Path, *flags: str, max_kib: int | None = None, **environ: str
) -> str:
    """What we say about the death of the engine with *flags*.

    It sometimes loses its last lines (findings/llama_server_loses_its_last_lines.sh), which is
    all that we have to go by.
    """
    for _ in range(TRIES):
        with engine(model, socket, *flags, max_kib=max_kib, **environ) as process:
            said = explanation(process)
        if not said.startswith(("It crashed", "It exited")):
            break
    return said


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "m.gguf"
    tiny_models.write("llama", path)
    return path


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("e.sock")  # relative, since the path of a socket is short


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lora /missing.gguf", ["LoRA adapter", "--lora"]),
        ("--mmproj /missing.gguf", ["projector", "--mmproj"]),
        ("--model-draft /missing.gguf", ["draft model", "--model-draft"]),
        ("-ctv q8_0 -fa off", ["flash attention", "--cache-type-v f16"]),
        ("-np 257", ["no more than 256 requests", "PARALLEL"]),
        ("--device CUDA7", ["no device CUDA7", "--list-devices"]),
        ("--grammar-file /missing", ["file", "--grammar-file names does not exist"]),
        ("--slot-save-path /missing", ["directory", "--slot-save-path names does not exist"]),
        ("-ctk nonsense", ["rejected one of its flags"]),
    ],
)
def test_a_flag_that_ends_the_engine_is_named(
    tiny_model: Path, socket: Path, flags: str, words: list[str]
) -> None:
    said = explained(tiny_model, socket, *flags.split())

    assert [word for word in words if word not in said] == []


def test_a_type_of_the_cache_that_does_not_suit_the_model_is_named(
    tmp_path: Path, socket: Path
) -> None:
    path = tmp_path / "m.gguf"
    tiny_models.write("llama", path)
    raw = path.read_bytes()
    # 4 heads of 32 elements become 8 of 16, which the blocks of q8_0 do not divide.
    for name, count in (("head_count", 8), ("head_count_kv", 4)):
        key = f"llama.attention.{name}".encode() + b"\4\0\0\0"
        at = raw.index(key) + len(key)
        raw = raw[:at] + bytes([count]) + raw[at + 1 :]
    path.write_bytes(raw)

    said = explained(path, socket, "-ctk", "q8_0")

    assert "The type q8_0 of the KV cache does not suit this model" in said
    assert "--cache-type-k" in said


def test_a_variable_that_ends_the_engine_is_named(tiny_model: Path, socket: Path) -> None:
    said = explained(tiny_model, socket, LLAMA_ARG_N_PARALLEL="four")

    assert "variable LLAMA_ARG_N_PARALLEL" in said


def test_a_lost_rpc_server_is_named(model_file: Path, socket: Path) -> None:
    with (
        rpc_server() as (address, server),
        engine(model_file, socket, "--rpc", address, "-ngl", "99") as process,
    ):
        assert process.stdout is not None
        next(line for line in process.stdout if "listening on unix" in line)
        with Wire(str(socket), seconds=DEADLINE_SECONDS) as wire:
            body = b'{"prompt":"a","n_predict":400,"ignore_eos":true,"stream":true}'
            wire.send(
                b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            wire.read_until(b"data:")
            server.kill()
            said = explanation(process)

    assert "--rpc" in said
    assert "ggml-rpc-server" in said


def test_a_missing_rpc_server_is_the_cause_of_missing_memory(
    model_file: Path, socket: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    said = explained(model_file, socket, "-c", "8192", "--rpc", address, max_kib=500_000)

    assert f"The RPC server at {address} did not respond, so its memory is missing" in said
