"""Addresses of models on a hub, and the file of a repository that an address selects.

``hf:OWNER/NAME/FILE.gguf`` is that file, ``hf:OWNER/NAME:TAG`` the one whose name has the
quantisation TAG in it, and ``hf:OWNER/NAME`` the only one there is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.models.model_file import MAX_LISTED, SUFFIX, part_paths

PREFIX: Final = "hf:"
WANTED: Final = "hf:OWNER/NAME:TAG (such as Q4_K_M) or hf:OWNER/NAME/FILE.gguf"

_ADDRESS: Final = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?P<file>[^\0]+\.gguf)|:(?P<tag>[A-Za-z0-9][\w.-]*))?",
    re.ASCII,
)
# What goes with a model, and is none that could be served.
_COMPANION: Final = re.compile(r"mmproj|^imatrix|imatrix\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    repo: str
    file: str = ""
    """Of a split model, the first part; empty where ``tag`` picks it."""
    tag: str = ""
    """Empty where ``file`` is named, or the repository has but one model."""

    def __str__(self) -> str:
        return PREFIX + self.repo + (f"/{self.file}" if self.file else f":{self.tag}".rstrip(":"))


def parse(text: str) -> Address:
    """Read an address; FILE may lie in folders.

    Raises:
        UserError: exit status 2.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in (match["file"] or "").split("/"):
        raise UserError(
            f"{text} is not the address of a model on a hub; use {WANTED}", exit_status=2
        )
    file = part_paths(match["file"])[0] if match["file"] else ""
    return Address(repo=match["repo"], file=file, tag=match["tag"] or "")


def models_in(files: Iterable[str]) -> list[str]:
    """The models among a repository's *files*, a split one by its first part."""
    models = {part_paths(f)[0] for f in files if f.endswith(SUFFIX)}
    return sorted(m for m in models if not _COMPANION.search(os.path.basename(m)))


def matching(models: Iterable[str], tag: str) -> list[str]:
    """Those of *models* that *tag* means: it stands in the name, or in that of a folder."""
    # Bounded on both sides, so that Q4_K does not mean Q4_K_M.
    pattern = re.compile(rf"(?:^|[-._/]){re.escape(tag)}(?=[-./])", re.IGNORECASE)
    return [m for m in models if not tag or pattern.search(m)]


def pick(address: Address, files: Iterable[str]) -> Address:
    """*address* with the one file that it means, out of the repository's *files*.

    Raises:
        UserError: there is none, or more than one; says which there are.
    """
    models = models_in(files)
    found = matching(models, address.tag)
    if len(found) == 1:
        return Address(address.repo, file=found[0])
    if not models:
        raise UserError(
            f"{address.repo} has no {SUFFIX} file. Look for a GGUF conversion of the model."
        )
    if not found:
        raise UserError(_choice(f"{address.repo} has no model for {address.tag}.", address, models))
    raise UserError(_choice(f"{address} matches several models.", address, found))


def _choice(sentence: str, address: Address, models: list[str]) -> str:
    shown = [f"  {Address(address.repo, file=m)}" for m in models[:MAX_LISTED]]
    if len(models) > MAX_LISTED:
        shown.append(f"  and {len(models) - MAX_LISTED} more")
    return "\n".join([f"{sentence} Use one of these:", *shown])
