"""The digest of a model, and when it has to be taken again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llama_gguf.prompt_cache import model_digest
from llama_gguf.prompt_cache.model_digest import digest, identity


def test_the_digest_is_of_all_bytes_of_all_parts(tmp_path: Path) -> None:
    parts = [tmp_path / "1", tmp_path / "2"]
    parts[0].write_bytes(b"x" * (model_digest.BLOCK_BYTES + 5))
    parts[1].write_bytes(b"y")
    whole = b"".join(part.read_bytes() for part in parts)

    assert digest([str(part) for part in parts]) == hashlib.sha256(whole).hexdigest()


def test_any_change_gives_a_file_another_identity(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"weights")
    first = identity([str(file)])
    assert identity([str(file)]) == first

    before = os.stat(file)
    with file.open("r+b") as opened:
        opened.write(b"W")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    assert identity([str(file)]) != first


def test_a_missing_file_has_no_identity(tmp_path: Path) -> None:
    assert identity([str(tmp_path / "none")]) == ""


def test_a_file_keeps_its_identity_when_its_file_system_is_mounted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"weights")
    first = identity([str(file)])
    found = os.stat(file)
    place = 2  # of st_dev
    remounted = os.stat_result(
        (*found[:place], found.st_dev + 1, *found[place + 1 :]), _named(found)
    )
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path: remounted)
        again = identity([str(file)])

    assert remounted.st_dev != found.st_dev
    assert remounted.st_ctime_ns == found.st_ctime_ns
    assert again == first


def _named(found: os.stat_result) -> dict[str, int]:
    """The fields of *found* that are no items of it."""
    return {name: getattr(found, name) for name in dir(found) if name.endswith("_ns")}
