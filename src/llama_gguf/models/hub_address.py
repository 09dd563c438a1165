"""Addresses of models on a hub, and the file of a repository that an address selects.

``hf:OWNER/NAME/FILE.gguf`` selects that file, ``hf:OWNER/NAME:TAG`` the one with the quantization
TAG in its name, and ``hf:OWNER/NAME`` the only model of the repository.
"""

from __future__ import annotations

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
# As it is written elsewhere: by other programs, in the web pages of a hub, without a prefix.
_OTHERWISE: Final = re.compile(
    r"(?:(?:hf|huggingface)://|hf:|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[a-z0-9][\w.-]*/[a-z0-9][\w.-]*)"
    r"(?:(?:/(?:blob|raw|resolve|tree)/[^/?#]+)?(?:/(?P<file>[^\0?#]+\.gguf))?"
    r"|:(?P<tag>[a-z0-9][\w.-]*))/?(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)
# Files that accompany a model and cannot be served.
_COMPANION: Final = re.compile(
    # Projectors, importance matrices, and draft models in separate files or directories.
    r"mmproj[^/]*$|(?:^|/)imatrix[^/]*$|imatrix\.gguf$|(?:^|/)mtp(?:-[^/]*$|/)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Address:
    repo: str
    file: str = ""
    """Of a split model, the first part; empty if ``tag`` selects it."""
    tag: str = ""
    """Empty if ``file`` is set, or if the repository has only one model."""

    def __str__(self) -> str:
        return PREFIX + self.repo + (f"/{self.file}" if self.file else f":{self.tag}".rstrip(":"))


def parse(text: str) -> Address:
    """Parse an address; FILE may be a path.

    Raises:
        UserError: it is invalid; exit status 2.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in (match["file"] or "").split("/"):
        raise UserError(
            f"{text} is not the address of a model on a hub; use {WANTED}{suggestion(text)}",
            exit_status=2,
        )
    file = part_paths(match["file"])[0] if match["file"] else ""
    return Address(repo=match["repo"], file=file, tag=match["tag"] or "")


def suggestion(text: str) -> str:
    """A question with the address that *text* probably means, for an error; empty if there is none.

    It may be the URL of a page about the model or the file, which is no file itself.
    """
    match = _OTHERWISE.fullmatch(text)
    if match is None or ".." in text or match["repo"].lower().endswith(SUFFIX):
        return ""
    address = Address(match["repo"], file=match["file"] or "", tag=match["tag"] or "")
    return f". Did you mean {address}?"


def models_in(files: Iterable[str]) -> list[str]:
    """The models among a repository's *files*; a split one is listed as its first part."""
    models = {part_paths(f)[0] for f in files if f.endswith(SUFFIX)}
    return sorted(m for m in models if not _COMPANION.search(m))


def matching(models: Iterable[str], tag: str) -> list[str]:
    """Those of *models* with *tag* in the name of the file or of a directory; all without one."""
    # Delimited on both sides, so that Q4_K does not match Q4_K_M.
    pattern = re.compile(rf"(?:^|[-._/]){re.escape(tag)}(?=[-./])", re.IGNORECASE)
    return [m for m in models if not tag or pattern.search(m)]


def pick(address: Address, files: Iterable[str]) -> Address:
    """*address* with the file that it selects among the repository's *files*.

    Raises:
        UserError: it selects none, or more than one; the message lists the candidates.
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
