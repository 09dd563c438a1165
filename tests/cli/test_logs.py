from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_gguf.cli import logs
from llama_gguf.cli.main import main
from tests.supervisor.test_control_client import running

BOOT = "logs/_boot/20261130T000000Z_boot_box.log"
ENGINE = "logs/llama/20261130T000000Z_server_box.log"


def write(data: Path, name: str, *lines: str) -> Path:
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def show(data: Path, *flags: str, **environ: str) -> int:
    return main(["logs", *flags], {"DATA_DIR": str(data), **environ})


@pytest.mark.parametrize(
    ("flags", "name"),
    [((), BOOT), (("--engine",), ENGINE), (("--requests",), "logs/api_access.log")],
)
def test_the_last_lines_of_each_log_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], name: str
) -> None:
    write(tmp_path, name, *(f"line {n}" for n in range(9)))

    assert show(tmp_path, *flags, "-n", "2") == 0

    assert capsys.readouterr().out == "line 7\nline 8\n"


def test_the_log_of_the_latest_start_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, BOOT, "new")
    old = write(tmp_path, "logs/_boot/20261129T000000Z_boot_box.log", "old")
    os.utime(old, (0, 0))

    assert show(tmp_path) == 0

    assert capsys.readouterr().out == "new\n"


@pytest.mark.parametrize(
    "environ", [{"LOG_NAME": "mine"}, {"WORKER_TYPE": "x", "LOG_NAME": "y"}], ids=["name", "type"]
)
def test_the_settings_of_serve_find_its_engine_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: dict[str, str]
) -> None:
    folder = "llama-x" if "WORKER_TYPE" in environ else "mine"
    write(tmp_path, f"logs/{folder}/1_server_box.log", "here")

    assert show(tmp_path, "--engine", **environ) == 0

    assert capsys.readouterr().out == "here\n"


def test_without_a_log_the_error_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path) == logs.NO_LOG

    assert f"there is no such log in {tmp_path}/logs yet" in capsys.readouterr().err


def test_the_log_of_an_earlier_serve_is_not_taken_for_that_of_a_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, BOOT, "old")
    write(tmp_path, "logs/api_access.log", "a request")
    hint = "the gateway that runs logs to its standard error; this is the log of an earlier `serve`"

    with running(tmp_path, kind="gateway"):
        assert show(tmp_path) == 0
        with_gateway = capsys.readouterr()
        assert show(tmp_path, "--requests") == 0
        requests = capsys.readouterr()
        with running(tmp_path, 8001):
            assert show(tmp_path) == 0
            with_both = capsys.readouterr()

    assert with_gateway.out == "old\n"
    assert hint in with_gateway.err
    assert hint not in requests.err
    assert hint not in with_both.err


def test_a_gateway_without_any_log_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path, kind="gateway"):
        assert show(tmp_path) == logs.NO_LOG

    assert "a gateway runs, which logs to its standard error" in capsys.readouterr().err


@pytest.mark.processes
def test_following_continues_with_a_rotated_file_and_with_the_next_start(tmp_path: Path) -> None:
    first = write(tmp_path, ENGINE, "one")
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_gguf", "logs", "-f", "--engine"],
        env={"DATA_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        with first.open("a") as file:
            file.write("two\n")
        assert process.stdout.readline() == "two\n"
        first.rename(f"{first}.1")
        write(tmp_path, ENGINE, "three")
        assert process.stdout.readline() == "three\n"
        write(tmp_path, "logs/llama/20261201T000000Z_server_box.log", "four")
        assert process.stdout.readline() == "four\n"
        process.terminate()
