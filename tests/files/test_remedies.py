from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_gguf.files.remedies import has_no_inodes, remedy


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "owner and mode"),
        (errno.ENOTDIR, "A part of the path is a file"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "FAT32"),
        (errno.EIO, "dmesg"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.ENODEV, "Check the file and its volume"),
    ],
)
def test_each_cause_has_its_remedy(tmp_path: Path, number: int, words: str) -> None:
    assert words in remedy(OSError(number, ""), str(tmp_path))


def test_an_error_without_a_number_has_a_remedy_too() -> None:
    assert remedy(OSError("strange"), "/") == "Check the file and its volume."


@pytest.mark.parametrize(
    ("files", "free", "words"),
    [(100, 1, "Free some space"), (100, 0, "no free inodes (`df -i`)"), (0, 0, "Free some space")],
)
def test_a_full_disk_differs_from_one_without_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, free: int, words: str
) -> None:
    status = SimpleNamespace(f_files=files, f_favail=free)
    monkeypatch.setattr(os, "statvfs", lambda _: status)

    assert words in remedy(OSError(errno.ENOSPC, ""), str(tmp_path / "a" / "b"))


def test_the_file_system_of_a_missing_path_is_that_of_its_parent(tmp_path: Path) -> None:
    assert has_no_inodes(str(tmp_path / "a" / "b")) == has_no_inodes(str(tmp_path))
    assert not has_no_inodes(os.devnull)
