from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_gguf.cli import bundle
from llama_gguf.cli.context import Context
from llama_gguf.config.load import load
from llama_gguf.config.platform import resolve
from tests.support.processes import free_ports


def context(folder: Path, **environ: str) -> Context:
    environ = {"DATA_DIR": str(folder), "HOST": "127.0.0.1", "PATH": os.defpath} | environ
    ports = dict(zip(("PORT", "PORT_HEALTH", "PORT_BACKEND"), map(str, free_ports(3)), strict=True))
    loaded = load(ports | environ)
    return Context(
        resolve(
            loaded.settings,
            environ={},
            is_dir=lambda path: False,
            is_writable=lambda path: True,
            host_name="host",
        ),
        loaded.sources,
        ports | environ,
    )


# Logs ---------------------------------------------------------------------------------------------


def log(folder: Path, name: str, *, age: int, text: str = "x\n") -> str:
    path = folder / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return str(path)


def test_the_newest_logs_of_each_folder_are_included(tmp_path: Path) -> None:
    kept = [log(tmp_path, f"llama/{age}.log", age=age) for age in range(3)]
    log(tmp_path, "llama/3.log", age=3)
    log(tmp_path, "llama/0.log.gz", age=0)
    kept.append(log(tmp_path, "_boot/1_boot_host.log", age=5))

    assert list(bundle.logs(context(tmp_path))) == kept


def test_a_missing_log_folder_has_no_logs(tmp_path: Path) -> None:
    assert list(bundle.logs(context(tmp_path))) == []


def test_the_tail_of_a_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    lines = [f"line {number:06}\n" for number in range(bundle.TAIL_BYTES // 10)]

    output = bundle.tail(log(tmp_path, "a.log", age=0, text="".join(lines)))

    body = output.partition("\n\n")[2]
    assert body.endswith(lines[-1])
    assert body.splitlines(keepends=True)[0] in lines
    assert bundle.TAIL_BYTES - 20 < len(body) <= bundle.TAIL_BYTES


def test_a_line_longer_than_the_tail_is_left_out(tmp_path: Path) -> None:
    output = bundle.tail(log(tmp_path, "a.log", age=0, text="x" * (bundle.TAIL_BYTES + 1)))

    assert output.endswith("bytes\n\n")


# The machine --------------------------------------------------------------------------------------


def test_all_variables_are_named_and_few_values_shown(tmp_path: Path) -> None:
    output = bundle.environment(
        context(tmp_path, CUDA_VISIBLE_DEVICES="0", LLAMA_API_KEY="x", EDITOR="vi", LOG_NAME="y")
    ).splitlines()

    assert "CUDA_VISIBLE_DEVICES=0" in output
    for name in ("LLAMA_API_KEY", "EDITOR", "LOG_NAME", "DATA_DIR"):
        assert f"{name} is set" in output


@pytest.mark.processes
def test_a_failed_command_is_reported_with_its_status(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    smi.chmod(0o755)

    output = bundle.gpu(context(tmp_path, PATH=f"{tmp_path}:{os.defpath}"))

    assert "$ nvidia-smi (status 9)\nno driver\n" in output


def test_folders_are_listed_with_free_space_and_files_with_modes(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gguf").write_bytes(b"12345")
    (tmp_path / "api_keys.txt").touch(mode=0o640)

    output = bundle.disk(context(tmp_path))

    assert f"{tmp_path}: " in output
    assert " free, " in output
    assert "m.gguf" in output
    assert "-rw-r-----" in output
    assert f"{tmp_path}/logs: No such file or directory" in output


def test_saved_prompts_are_not_included_wherever_they_are(tmp_path: Path) -> None:
    log(tmp_path, "server.log", age=1)
    log(tmp_path, "prompts/a.state", age=0)
    chosen = context(tmp_path, PROMPT_CACHE_DIR=str(tmp_path / "logs" / "prompts"))

    assert list(bundle.logs(chosen)) == [str(tmp_path / "logs" / "server.log")]
