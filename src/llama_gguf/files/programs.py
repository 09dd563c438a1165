"""Programs on PATH. Not by ``shutil``, which loads two compression libraries: 0.3 MB."""

from __future__ import annotations

import os


def find_program(name: str, path: str = "") -> str | None:
    """The file of the program *name*; None if there is none.

    Args:
        name: of a file in one of the folders, or its path if it contains a slash.
        path: the folders, as in PATH; empty for those of this process.
    """
    if os.path.dirname(name):
        return name if is_program(name) else None
    folders = os.get_exec_path({"PATH": path} if path else None)
    return next(filter(is_program, (os.path.join(folder, name) for folder in folders)), None)


def is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)
