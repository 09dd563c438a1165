from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llama_gguf.files.atomic import replace_file


def test_a_missing_file_is_created_for_its_owner_only(tmp_path: Path) -> None:
    path, temporary = tmp_path / "file", tmp_path / "file.new"
    replace_file(str(path), b"content", temporary=str(temporary))

    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not temporary.exists()


def test_a_reader_that_has_the_old_file_open_still_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        replace_file(str(path), b"new", temporary=str(tmp_path / "file.new"))

        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path, temporary = tmp_path / "file", tmp_path / "file.new"
    path.write_bytes(b"old")
    temporary.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        replace_file(str(path), b"new", temporary=str(temporary))

    assert path.read_bytes() == b"old"


def test_the_remains_of_an_interrupted_write_are_overwritten(tmp_path: Path) -> None:
    path, temporary = tmp_path / "file", tmp_path / "file.new"
    temporary.write_bytes(b"longer than the new content")
    replace_file(str(path), b"new", temporary=str(temporary))

    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(("keeps_owner", "uid"), [(True, 12345), (False, 0)])
def test_the_owner_is_kept_on_request(tmp_path: Path, keeps_owner: bool, uid: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 12345, 54321)
    temporary = str(tmp_path / "file.new")
    replace_file(str(path), b"new", temporary=temporary, keeps_owner=keeps_owner)

    assert path.stat().st_uid == uid
