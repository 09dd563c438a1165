from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest

from llama_gguf.cli import serve
from llama_gguf.cli.main import main

# DEBUG_SHELL --------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The durations for which it would have slept."""
    held: list[float] = []
    monkeypatch.setattr(time, "sleep", held.append)
    return held


def test_the_debug_shell_shows_the_environment_and_starts_nothing(
    tmp_path: Path, held: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"DEBUG_SHELL": "true", "DATA_DIR": str(tmp_path), "LANG": "C"}

    assert main(["serve"], environ) == 0

    assert held == [300]
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"DATA_DIR={tmp_path}",
        "DEBUG_SHELL=true",
        "LANG=C",
        "DEBUG_SHELL: waiting for 300 s.",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("BACKEND_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "RUNPOD_API_KEY"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "LLAMA_API_KEY", "GITHUB_TOKEN"),
        *("SMTP_PASS", "DB_PASSWD", "MYSQL_PWD", "PASSPHRASE", "REGISTRY_AUTH", "SIGNATURE"),
        *("OTEL_EXPORTER_OTLP_HEADERS", "PRIVATE_REPO", "SESSION_COOKIE"),
    ],
)
def test_the_debug_shell_shows_no_secret(
    name: str, held: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve"], {"DEBUG_SHELL": "true", name: "hush-hush"}) == 0

    shown = capsys.readouterr().out
    assert f"{name}=********" in shown
    assert "hush-hush" not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "http://user:hush-hush@proxy:3128"),
        ("LLAMA_ARGS", "--verbose --api-key hush-hush"),
        ("CURL_HEADER", "Authorization: Bearer hush-hush"),
    ],
)
def test_the_debug_shell_shows_no_secret_that_is_part_of_a_value(
    name: str, value: str, held: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve"], {"DEBUG_SHELL": "true", name: value}) == 0

    shown = capsys.readouterr().out
    assert f"{name}=" in shown
    assert "hush-hush" not in shown


def test_the_debug_shell_shows_paths_with_names_of_secrets(
    tmp_path: Path, held: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"DEBUG_SHELL": "true", "PWD": str(tmp_path), "AUTH_KEYS_FILE": "/keys/of/all.txt"}

    assert main(["serve"], environ) == 0

    shown = capsys.readouterr().out
    assert f"PWD={tmp_path}\n" in shown
    assert "AUTH_KEYS_FILE=/keys/of/all.txt\n" in shown


# Flags --------------------------------------------------------------------------------------------


def test_the_model_argument_is_optional() -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)

    assert vars(parser.parse_args([])) == {"create_key": False}
    assert vars(parser.parse_args(["m", "--create-key"])) == {
        "setting_model_name": "m",
        "create_key": True,
    }


@pytest.mark.parametrize("flag", ["-q", "--quiet", "-v", "--verbose"])
def test_quiet_and_verbose_are_settings(flag: str) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)

    chosen = vars(parser.parse_args([flag]))
    expected = {"setting_log_level": "warning"} if "q" in flag else {"setting_log_requests": "true"}
    assert chosen == {"create_key": False, **expected}
