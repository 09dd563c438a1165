from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llama_gguf.files.programs import find_program


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """In the first, `tool` cannot be executed; in the second it is a folder."""
    found = [tmp_path / name for name in "abcd"]
    for folder in found:
        folder.mkdir()
    (found[0] / "tool").write_text("")
    (found[1] / "tool").mkdir()
    for folder in found[2:]:
        (folder / "tool").write_text("")
        (folder / "tool").chmod(0o755)
    return found


@pytest.mark.parametrize("name", ["tool", "other", "c/tool", "./a/tool", "b"])
def test_the_first_executable_file_is_found_as_by_a_shell(
    name: str, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[0].parent)
    path = os.pathsep.join(map(str, folders))

    assert find_program(name, path) == shutil.which(name, path=path)


def test_without_a_path_it_is_that_of_this_process() -> None:
    assert find_program("sh") == shutil.which("sh")
