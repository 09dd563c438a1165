"""The key between gateway and engine, and the clients' keys, are visible nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.keys import BACKEND_KEY, KEY
from tests.support.processes import children, environment_of
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes

HARMFUL: Final = {
    "LLAMA_ARG_HOST": "0.0.0.0",  # noqa: S104  # as llama.cpp's own image has it
    "LLAMA_ARG_PORT": "1",
    "LLAMA_ARG_API_PREFIX": "/hidden",
    "LLAMA_ARG_TOOLS": "all",
    "LLAMA_ARG_SSL_KEY_FILE": "/k",
    "LLAMA_API_KEY": "another program's",
    "AIP_MODE": "PREDICTION",
}
URL: Final = "https://user:url-password@127.0.0.1/m.gguf?signature=url-signature"
HARMLESS: Final = {"LLAMA_ARG_FLASH_ATTN": "on", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A `serve` that has served and rejected requests, and whose engine has died."""
    serve = Serve(tmp_path_factory.mktemp("secrets"))
    serve.add_key()
    try:
        serve.start_ready(
            engine=quoted("--die-on", "/tokenize", "--print", "hello", "--mmproj-url", URL),
            BACKEND_API_KEY=BACKEND_KEY,
            HF_TOKEN="hf_another-token",
            **HARMFUL,
            **HARMLESS,
        )
        assert serve.send_request(CHAT, b"{}").status == 200
        assert serve.send_request(CHAT, b"{}", key=f"{KEY}-wrong").status == 401
        assert serve.send_request("/tokenize", b"{}").status == 502
        serve.until_printed("llama-server died")
        serve.until(lambda: serve.err.count("The model is ready") == 2)
        yield serve
    finally:
        serve.end()


def test_the_engine_gets_our_key_and_no_variable_that_would_expose_it(
    ready: Serve,
) -> None:
    got = environment_of(ready.engine_pid)

    assert got["LLAMA_API_KEY"] == BACKEND_KEY
    assert HARMLESS.items() <= got.items()
    assert not (HARMFUL.keys() - {"LLAMA_API_KEY"}) & got.keys()
    assert not {"HF_TOKEN", "BACKEND_API_KEY"} & got.keys()
    assert (
        "Variables not passed to llama-server: AIP_MODE LLAMA_API_KEY LLAMA_ARG_API_PREFIX"
        in ready.err
    )


def test_no_command_line_has_a_secret(ready: Serve) -> None:
    own = Path(f"/proc/{ready.pid}/cmdline").read_bytes().decode()
    commands = [own, *children(ready.pid).values()]

    assert len(commands) == 3
    assert not [c for c in commands if BACKEND_KEY in c or KEY in c or "hf_" in c]


def test_no_log_and_no_file_has_a_secret_but_the_keys_file(ready: Serve) -> None:
    written = [p for p in ready.data.rglob("*") if p.is_file() and p != ready.keys_file]
    texts = {p.name: p.read_text("utf-8", errors="replace") for p in written}
    texts |= {"stderr": ready.err, "stdout": ready.out}

    assert any(name.endswith(".log") for name in texts)
    assert "llama-server died" in texts["stderr"]
    assert "--mmproj-url" in texts["stderr"]
    for name, text in texts.items():
        assert BACKEND_KEY not in text, name
        assert KEY not in text, name
        assert "hf_" not in text, name
        assert "url-" not in text, name


def test_the_settings_in_the_log_are_masked(ready: Serve) -> None:
    assert "BACKEND_API_KEY=********" in ready.err


def test_the_public_paths_show_no_secret_and_no_key_id(ready: Serve) -> None:
    for path in ("/ping", "/health"):
        body = ready.send_request(path, key="").body.decode()
        assert BACKEND_KEY not in body
        assert "tester" not in body
