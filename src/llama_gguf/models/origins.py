"""The origin of the models in MODELS_DIR: ``.pulled/FILE.gguf`` contains a hub address.

With it, a tag that was pulled once is found again without a request to the hub, and two models
with the same file name are not confused.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.models.hub_address import Address, matching, models_in, parse
from llama_gguf.models.model_file import is_whole, part_paths

FOLDER: Final = ".pulled"
_MAX_CHARACTERS: Final = 4096


def remember(models_dir: str, address: Address) -> None:
    """Record *address* as the origin of its model; if it cannot be written, it stays unknown."""
    folder = os.path.join(models_dir, FOLDER)
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, os.path.basename(address.file)), "w", encoding="utf-8") as f:
            f.write(f"{address}\n")


def origin_of(models_dir: str, name: str) -> Address | None:
    """The origin of the file *name* in *models_dir*; None if unknown."""
    try:
        path = os.path.join(models_dir, FOLDER, name)
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse(file.read(_MAX_CHARACTERS).strip())
    except (OSError, UserError):
        return None


def find(models_dir: str, address: Address) -> Address | None:
    """*address* with its file, if that is in *models_dir* and complete; no network access.

    Raises:
        UserError: the file is there, and has another origin.
    """
    file = address.file or _file_for_tag(models_dir, address)
    if not file or not all(is_whole(path) for path in local_paths(models_dir, file)):
        return None
    found = Address(address.repo, file=file)
    name = os.path.basename(file)
    origin = origin_of(models_dir, name)
    if origin is not None and not (origin.file == file and _is_same(origin.repo, address.repo)):
        raise UserError(
            f"{os.path.join(models_dir, name)} already exists, and is {origin}.\n"
            f"Rename it, or replace it: `llama-gguf pull {found} --force`."
        )
    return found


def _file_for_tag(models_dir: str, address: Address) -> str:
    try:
        names = os.listdir(os.path.join(models_dir, FOLDER))
    except OSError:
        return ""
    origins = [origin_of(models_dir, name) for name in names]
    files = [o.file for o in origins if o is not None and _is_same(o.repo, address.repo)]
    found = matching(models_in(files), address.tag)
    return found[0] if len(found) == 1 else ""


def _is_same(one: str, other: str) -> bool:
    """Whether two names are of the same repository: a hub ignores their case."""
    return one.lower() == other.lower()


def local_paths(models_dir: str, file: str) -> list[str]:
    """The paths in *models_dir* for all parts of a repository's *file*."""
    return [
        os.path.abspath(os.path.join(models_dir, os.path.basename(part)))
        for part in part_paths(file)
    ]
