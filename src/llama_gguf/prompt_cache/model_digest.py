"""The digest of a model's whole content, which takes a minute for a large one.

It is taken once, and remembered by what the file system reports of the files. So a file that was
changed or replaced has none until its content has been read again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from llama_gguf.digests import sha256

BLOCK_BYTES: Final = 1 << 22


def identity(paths: Sequence[str]) -> str:
    """Names the content of files as the file system knows it; empty if one is missing."""
    facts: list[object] = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            return ""
        # With ctime: it changes with each write, and mtime can be set back. Without the device: a
        # network or overlay file system has another number each time that it is mounted.
        facts.append((found.st_ino, found.st_size))
        facts.append((found.st_mtime_ns, found.st_ctime_ns))
    return sha256(repr(facts).encode()).hexdigest()[:32]


def digest(paths: Sequence[str]) -> str:
    """SHA-256 of the content of all files, in order.

    Raises:
        OSError: one cannot be read.
    """
    import hashlib  # noqa: PLC0415  # which is the fastest one, and loads libcrypto

    found = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                found.update(buffer[:size])
    return found.hexdigest()
