"""Fetch a model from a model hub: ``hf:OWNER/NAME/FILE.gguf``, by way of huggingface_hub.

The library is an extra, and imported only here and only when it is asked for. What it leaves
of a download that was cut off is thrown away, since it does not go on from that: of a split
model, the parts that are whole are kept.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from llama_gguf.engine.landing import (
    TEMPORARY,
    Meter,
    MeterFactory,
    check_model,
    check_space,
    put_in_place,
    watching,
)
from llama_gguf.engine.model import part_paths
from llama_gguf.engine.urls import masked
from llama_gguf.errors import UserError

PREFIX: Final = "hf:"

_ADDRESS: Final = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[^\0]+\.gguf)", re.ASCII
)
# By name: what the library's errors are made of changed with each of its major versions.
_EXPLAINED: Final[Mapping[str, str]] = {
    "GatedRepoError": "wants its terms accepted; do that at the hub, and set HF_TOKEN",
    "RepositoryNotFoundError": "is not there, or is private: then set HF_TOKEN",
    "RemoteEntryNotFoundError": "has no such file",
    "EntryNotFoundError": "has no such file",
    "LocalEntryNotFoundError": "cannot be reached now; try again later",
}


@dataclass(frozen=True, slots=True)
class Address:
    repo: str
    file: str
    """Of a split model, the first part."""


def parse(text: str) -> Address:
    """Read ``hf:OWNER/NAME/FILE.gguf``; FILE may lie in folders.

    Raises:
        UserError: exit status 2.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in match["file"].split("/"):
        raise UserError(
            f"{text} names no file on a hub; wanted: hf:OWNER/NAME/FILE.gguf", exit_status=2
        )
    return Address(repo=match["repo"], file=part_paths(match["file"])[0])


def fetch(
    repo: str,
    targets: Mapping[str, str],
    *,
    meter_factory: MeterFactory,
    environ: Mapping[str, str],
    import_module: Callable[[str], ModuleType],
) -> None:
    """Fetch files of *repo*.

    Args:
        repo: the repository.
        targets: where to put each file.
        meter_factory: makes the meter of each file.
        environ: for HF_TOKEN.
        import_module: imports the library.

    Raises:
        UserError: the library is not there, or says no; or what comes is not a model.
    """
    hub = _library(import_module)
    for file, final in targets.items():
        with meter_factory(os.path.basename(final)) as meter:
            _fetch_one(hub, Address(repo, file), final, meter=meter, environ=environ)


def _library(import_module: Callable[[str], ModuleType]) -> Any:
    try:
        hub = import_module("huggingface_hub")
        import_module("huggingface_hub.utils").disable_progress_bars()  # the meter shows it
    except ImportError:
        raise UserError(
            "Models on a hub need one more package: pip install 'llama-gguf-inference[hub]'"
        ) from None
    return hub


def _fetch_one(
    hub: Any, address: Address, final: str, *, meter: Meter, environ: Mapping[str, str]
) -> None:
    token = environ.get("HF_TOKEN") or None  # None lets the library use a login it has kept
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=os.path.dirname(final)) as folder:
        size = _size(hub, address, token=token)
        if size is not None:
            check_space(folder, size)
        with watching(folder, meter, size):
            fetched = _download(hub, address, folder=folder, token=token)
        check_model(fetched, f"{address.file} in {address.repo}")
        put_in_place(fetched, final)


def _size(hub: Any, address: Address, *, token: str | None) -> int | None:
    try:
        url = hub.hf_hub_url(address.repo, address.file)
        size = hub.get_hf_file_metadata(url, token=token).size
    except Exception:  # whatever is wrong, the download says it better
        return None
    return size if isinstance(size, int) else None


def _download(hub: Any, address: Address, *, folder: str, token: str | None) -> str:
    try:
        return str(hub.hf_hub_download(address.repo, address.file, local_dir=folder, token=token))
    except Exception as error:  # see _EXPLAINED: there is no family to catch
        raise UserError(_explained(address, error)) from None


def _explained(address: Address, error: Exception) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _EXPLAINED:
            return f"{address.file} in {address.repo}: the repository {_EXPLAINED[kind.__name__]}."
    first = next(iter(masked(str(error)).splitlines()), "") or type(error).__name__
    return f"{address.file} in {address.repo} could not be fetched: {first}"
