from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models import download_files
from tests.support.gguf_files import gguf


def test_the_models_directory_is_created(tmp_path: Path) -> None:
    download_files.make_folder(str(tmp_path / "data" / "models"))

    assert (tmp_path / "data" / "models").is_dir()


def test_the_error_for_an_unusable_models_directory_shows_how_to_use_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match="--models-dir") as caught:
        download_files.make_folder(str(tmp_path / "file" / "models"))

    assert caught.value.exit_status == 2


def test_leftovers_of_killed_pulls_are_removed_after_a_week(tmp_path: Path) -> None:
    for name in (".pull-old", ".pull-new", "old-but-not-ours"):
        (tmp_path / name).mkdir()
    for name in (".pull-old", "old-but-not-ours"):
        os.utime(tmp_path / name, (0, 0))

    download_files.make_folder(str(tmp_path))

    assert sorted(p.name for p in tmp_path.iterdir()) == [".pull-new", "old-but-not-ours"]


def test_the_error_for_too_little_space_has_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"free, but 1000000000\.0 GB are needed"):
        download_files.check_space(str(tmp_path), 10**18)


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    first = os.open(tmp_path, os.O_RDONLY)
    second = os.open(tmp_path, os.O_RDONLY)
    download_files.take_lock(first, "m")
    with pytest.raises(UserError, match="Another pull of m"):
        download_files.take_lock(second, "m")

    os.close(first)

    download_files.take_lock(second, "m")
    os.close(second)


def test_anything_but_a_model_is_rejected_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    (tmp_path / "n.gguf").write_bytes(b"<html>")

    download_files.check_model(str(tmp_path / "m.gguf"), "the moon")
    with pytest.raises(UserError, match="The content of the moon is not a GGUF file"):
        download_files.check_model(str(tmp_path / "n.gguf"), "the moon")
