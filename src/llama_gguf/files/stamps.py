"""A file's identity and state, to detect that it has changed."""

from __future__ import annotations

import os

from llama_gguf.values import Value


class Stamp(Value):
    """Identity and state of a file; another file, or changed content, has another stamp."""

    file: tuple[int, int]
    """Device and inode, with links resolved: Kubernetes updates a secret by a new target."""
    state: tuple[int, int, int]


def stamp(path: str) -> Stamp | None:
    """The stamp of the file at *path*; None if it is missing or inaccessible."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    # ctime, not mtime: mtime can be set back, and does not change with a chmod.
    state = (found.st_ctime_ns, found.st_size, found.st_mode)
    return Stamp((found.st_dev, found.st_ino), state)
