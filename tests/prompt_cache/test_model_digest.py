"""The digest of a model, and when it has to be taken again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

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
