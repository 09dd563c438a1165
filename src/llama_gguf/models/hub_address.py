"""Addresses of models on a hub, and the file of a repository that an address selects.

``hf:OWNER/NAME/FILE.gguf`` selects that file, ``hf:OWNER/NAME:TAG`` the one with the quantization
TAG in its name, and ``hf:OWNER/NAME`` the only model of the repository. ``canonical`` makes such an
address of the forms that other programs and the pages of a hub have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.models.model_file import MAX_LISTED, SUFFIX, part_paths
from llama_gguf.values import Value

PREFIX: Final = "hf:"
WANTED: Final = "hf:OWNER/NAME:TAG (such as Q4_K_M) or hf:OWNER/NAME/FILE.gguf"

_ADDRESS: Final = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?P<file>[^\0]+\.gguf)|:(?P<tag>[A-Za-z0-9][\w.-]*))?",
    re.ASCII,
)
# As it is written elsewhere: by other programs, in the web pages of a hub, without a prefix.
_OTHERWISE: Final = re.compile(
    r"(?P<prefix>(?:hf|huggingface)://|hf:|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[a-z0-9][\w.-]*/[a-z0-9][\w.-]*)"
    r"(?:(?:/(?P<page>blob|raw|resolve|tree)/(?P<revision>[^/?#]+))?(?:/(?P<file>[^\0?#]+\.gguf))?"
    r"|:(?P<tag>[a-z0-9][\w.-]*))/?(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)
# Files that accompany a model and cannot be served.
# Projectors, importance matrices, and draft models in separate files or directories.
_COMPANION: Final = r"(?i)mmproj[^/]*$|(?:^|/)imatrix[^/]*$|imatrix\.gguf$|(?:^|/)mtp(?:-[^/]*$|/)"


_PROJECTOR: Final = r"(?i)(?:^|/)[^/]*mmproj[^/]*\.gguf$"
_PRECISION: Final = r"(?i)(?<![a-z0-9])(f16|bf16|f32)(?![a-z0-9])"
_MAIN: Final = "main"
"""The revision that an address stands for."""


class Address(Value):
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


def canonical(text: str, *, is_bare: bool = False) -> str:
    """The address or URL that *text* clearly means; *text* itself if it is no other form of one.

    1. The page or the address of a repository becomes an address.
    2. The page about a file does too, or the URL of the file if it is of another revision than the
       main one, which an address cannot express. Its URL stays.
    3. ``OWNER/NAME:TAG`` becomes an address.

    Args:
        text: from the user.
        is_bare: whether ``OWNER/NAME`` and ``OWNER/NAME/FILE.gguf`` are addresses too. Elsewhere
            they are paths of files.
    """
    match = _OTHERWISE.fullmatch(text)
    if _ADDRESS.fullmatch(text) or match is None:
        return text
    if ".." in text or match["repo"].lower().endswith(SUFFIX):
        return text
    page, file, tag = match["page"] or "", match["file"] or "", match["tag"] or ""
    has_other_revision = page and match["revision"] != _MAIN
    is_scheme = re.match("https?:", text, re.IGNORECASE) is not None
    if page in {"blob", "raw"} and file and has_other_revision:
        return f"https://huggingface.co/{match['repo']}/resolve/{match['revision']}/{file}"  # 2
    if (page == "resolve" and is_scheme) or has_other_revision:
        return text
    if not match["prefix"] and not (tag or is_bare):
        return text
    return str(Address(match["repo"], file=file, tag=tag))  # 1, 2, 3


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
    return sorted(m for m in models if not re.search(_COMPANION, m))


def projector_in(files: Iterable[str]) -> str:
    """The projector in *files*; of several, the one of 16 bits; empty if there is none."""
    found = sorted(f for f in files if re.search(_PROJECTOR, f))
    order = ("f16", "bf16", "f32")

    def rank(file: str) -> int:
        match = re.search(_PRECISION, file)
        return order.index(match[1].lower()) if match else len(order)

    return min(found, key=rank, default="")


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
