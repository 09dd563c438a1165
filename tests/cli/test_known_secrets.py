from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_gguf.cli.context import Context
from llama_gguf.cli.known_secrets import gather, is_harmless
from llama_gguf.config.load import load
from llama_gguf.config.platform import resolve
from tests.access.test_attributes import FULL


def found(folder: Path, environ: dict[str, str], **flags: str) -> tuple[set[str], list[str]]:
    environ = {"HOME": str(folder), "DATA_DIR": str(folder)} | environ
    loaded = load(environ, flags)
    settings = resolve(
        loaded.settings,
        environ={},
        is_dir=lambda path: False,
        is_writable=lambda path: True,
        host_name="host",
    )
    return gather(Context(settings, loaded.sources, environ))


@pytest.mark.parametrize("line", ["alice:{}", "al:{}:10", "alice:{}:10:2020-01-01", "{}", "{}:x:y"])
def test_everything_in_the_keys_file_that_could_be_a_key_is_a_secret(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "api_keys.txt").write_text(f"# a comment\n{line.format('Zq8vN2xLw5TfR7mB')}\n")

    secrets, troubles = found(tmp_path, {})

    assert "Zq8vN2xLw5TfR7mB" in secrets
    assert not {"alice", "comment"} & secrets
    assert troubles == []


def test_a_keys_long_name_is_not_a_secret(tmp_path: Path) -> None:
    (tmp_path / "api_keys.txt").write_text("customer-of-the-year:Zq8vN2xLw5TfR7mB\n")

    assert "customer-of-the-year" not in found(tmp_path, {})[0]


def test_the_limits_of_a_key_are_not_secrets(tmp_path: Path) -> None:
    (tmp_path / "api_keys.txt").write_text(f"alice:Zq8vN2xLw5TfR7mB:60 {FULL}\n")

    secrets, _ = found(tmp_path, {})
    assert "Zq8vN2xLw5TfR7mB" in secrets
    assert not {"tokens_per_day", "embeddings", "priority"} & secrets


def test_values_given_as_flags_are_searched_too(tmp_path: Path) -> None:
    secrets, _ = found(
        tmp_path, {}, model_name="https://me:sesame@h/m.gguf", extra_args="--x-key y7y7"
    )

    assert {"sesame", "y7y7"} <= secrets


@pytest.mark.parametrize("where", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_a_token_stored_by_the_hub_is_found(tmp_path: Path, where: str) -> None:
    path = {
        "HF_TOKEN_PATH": tmp_path / "a-file",
        "HF_HOME": tmp_path / "token",
        "XDG_CACHE_HOME": tmp_path / "huggingface" / "token",
        "HOME": tmp_path / ".cache" / "huggingface" / "token",
    }[where]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("the-login\n")

    value = path if where == "HF_TOKEN_PATH" else tmp_path
    assert "the-login" in found(tmp_path, {where: str(value)})[0]


@pytest.mark.processes
def test_arguments_and_environments_of_processes_are_searched(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "print(flush=True); input()",
        "llama-server",
        "--api-key",
        "in-arguments",
    ]
    environ = {"LLAMA_API_KEY": "in-environment"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it is running
        secrets, _ = found(tmp_path, {})
        child.communicate(b"\n")

    assert {"in-arguments", "in-environment"} <= secrets


def test_sources_that_cannot_be_searched_are_reported(tmp_path: Path) -> None:
    secrets, troubles = found(tmp_path, {"AUTH_KEYS_FILE": str(tmp_path), "HF_TOKEN": "a-token"})

    assert "a-token" in secrets
    assert troubles == [
        f"the keys file: IsADirectoryError: [Errno 21] Is a directory: '{tmp_path}'"
    ]


@pytest.mark.parametrize(
    ("name", "value", "harmless"),
    [
        ("AUTH_KEYS_FILE", "/nowhere", True),
        ("BACKEND_API_KEY", "x", False),
        ("PWD", "/", True),
        ("SSH_AUTH_SOCK", os.sep, True),
        ("SOME_KEY", "/not/a/path+of=this/machine", False),
    ],
)
def test_not_every_variable_named_like_a_secret_contains_one(
    name: str, value: str, harmless: bool
) -> None:
    assert is_harmless(name, value) == harmless
