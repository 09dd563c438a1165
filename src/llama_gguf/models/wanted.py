"""The names that ``pull`` accepts, and the files in MODELS_DIR that have them.

A start with a model that is present needs this, and not what downloads: ``pull.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.models import hub_address, origins
from llama_gguf.models.catalogue import CATALOGUE
from llama_gguf.models.model_file import is_whole
from llama_gguf.models.urls import check_url

KNOWN_FILES: Final[Mapping[str, str]] = {name: e.file for name, e in CATALOGUE.items()}
"""By name in the catalogue, the file in MODELS_DIR."""


def find(wanted: str, models_dir: str) -> str | None:
    """The path of *wanted*, a name that ``pull`` accepts, if it is here; no network access.

    Raises:
        UserError: *wanted* is invalid, or another model has its file name.
    """
    wanted = hub_address.canonical(wanted)
    if wanted in KNOWN_FILES:
        path = os.path.join(models_dir, KNOWN_FILES[wanted])
        return path if os.path.lexists(path) else None
    if wanted.startswith(hub_address.PREFIX):
        found = origins.find(models_dir, hub_address.parse(wanted))
        return None if found is None else origins.local_paths(models_dir, found.file)[0]
    path = os.path.join(models_dir, file_name(wanted, ""))
    return path if is_whole(path) else None


def is_fetchable(wanted: str) -> bool:
    """Whether *wanted* is a name that ``pull`` accepts, and neither a file's name nor a path."""
    wanted = hub_address.canonical(wanted)
    return wanted in KNOWN_FILES or wanted.startswith(hub_address.PREFIX) or is_url(wanted)


def is_url(text: str) -> bool:
    """Whether *text* is an address of the web."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def file_name(url: str, name: str) -> str:
    """The name of the file at *url* in MODELS_DIR: *name*, if it is not empty.

    Raises:
        UserError: there is none, or it is not valid.
    """
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415

    check_url(url)
    chosen = name or unquote(urlsplit(url).path).rpartition("/")[2]
    if re.fullmatch(r"[^./][^/]*\.gguf", chosen) and chosen.isprintable():
        return chosen
    if name:
        raise UserError(f"--name {name} is not a file name that ends in .gguf", exit_status=2)
    raise UserError(
        "The URL does not end in the name of a .gguf file"
        f"{hub_address.suggestion(url) or '. Set a name with --name FILE.gguf.'}",
        exit_status=2,
    )
