"""Fetch a model from a model hub, with huggingface_hub.

The library knows the hub: its address, the login, which files there are, and why it says no.
The bytes are fetched as those of any URL are, since the library begins anew where it was cut
off: docs/adr/0013-a-hubs-bytes-are-fetched-by-us.md. It is an extra, and imported only here and
only when it is asked for.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from llama_gguf.config.masking import mask_urls
from llama_gguf.errors import UserError, how_to_install
from llama_gguf.models import from_url
from llama_gguf.models.landing import (
    TEMPORARY,
    Meter,
    check_model,
    check_space,
    put_in_place,
    watching,
)
from llama_gguf.models.part_file import part_bytes

MAX_PLAIN_BYTES: Final = 50_000_000_000
"""Larger files the hub gives out in pieces only, which the library puts together."""

# By name: what the library's errors are made of changed with each of its major versions.
_EXPLAINED: Final[Mapping[str, str]] = {
    "GatedRepoError": "requires you to accept its terms; do so on the hub, and set HF_TOKEN",
    "RepositoryNotFoundError": "does not exist, or is private: for a private one, set HF_TOKEN",
    "RemoteEntryNotFoundError": "has no such file",
    "EntryNotFoundError": "has no such file",
    "LocalEntryNotFoundError": "cannot be reached; try again later",
    "OfflineModeIsEnabled": "was not contacted, because HF_HUB_OFFLINE is set",
    "ConnectError": "cannot be reached; check the network, and HF_ENDPOINT if it is set",
    "TimeoutException": "does not respond; try again later",
}


@dataclass(frozen=True, slots=True)
class Remote:
    """A file in a repository."""

    repo: str
    file: str
    url: str
    """Of exactly this version of it."""
    bytes: int | None
    sha256: str
    """Empty where the hub does not tell: for files so small that git itself keeps them."""


class Hub:
    """huggingface_hub, with the endpoint and the token of *environ*.

    Raises:
        UserError: the library is not installed.
    """

    def __init__(
        self, environ: Mapping[str, str], import_module: Callable[[str], ModuleType]
    ) -> None:
        try:
            self._library: Any = import_module("huggingface_hub")
            utils: Any = import_module("huggingface_hub.utils")
        except ImportError:
            raise UserError(
                f"Models on a hub require another package: {how_to_install('hub')}"
            ) from None
        utils.disable_progress_bars()  # the meter shows it
        self._environ = environ
        self._endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or None
        # None lets the library use a login that it has kept.
        self._token = environ.get("HF_TOKEN", "").strip() or None
        self._login: dict[str, str] = {
            name: value
            for name, value in utils.build_hf_headers(token=self._token).items()
            if name.lower() == "authorization"
        }

    def files(self, repo: str) -> list[str]:
        """Every file of *repo*."""
        with _Explaining(repo):
            api = self._library.HfApi(endpoint=self._endpoint, token=self._token)
            return list(api.list_repo_files(repo))

    def describe(self, repo: str, file: str) -> Remote:
        """What the hub says of *file*."""
        with _Explaining(f"{file} in {repo}"):
            url = self._library.hf_hub_url(repo, file, endpoint=self._endpoint)
            told = self._library.get_hf_file_metadata(
                url, token=self._token, endpoint=self._endpoint
            )
            pinned = self._library.hf_hub_url(
                repo, file, revision=told.commit_hash, endpoint=self._endpoint
            )
        sha256 = told.etag if re.fullmatch(r"[0-9a-f]{64}", told.etag or "") else ""
        return Remote(repo, file, url=pinned, bytes=told.size, sha256=sha256)

    def fetch(self, remote: Remote, final: str, meter: Meter) -> None:
        """Fetch one file and put it at *final*, going on where an earlier try was cut off."""
        if remote.bytes is not None and remote.bytes > MAX_PLAIN_BYTES:
            self._fetch_in_pieces(remote, final, meter)
        else:
            from_url.fetch(
                remote.url,
                final,
                meter=meter,
                environ=self._environ,
                sha256=remote.sha256,
                headers=self._login,
            )

    def _fetch_in_pieces(self, remote: Remote, final: str, meter: Meter) -> None:
        """By the library, into a folder of its own. It does not go on from what that holds."""
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=os.path.dirname(final)) as folder:
            with (
                watching(folder, meter, remote.bytes),
                _Explaining(f"{remote.file} in {remote.repo}"),
            ):
                fetched = self._library.hf_hub_download(
                    remote.repo,
                    remote.file,
                    local_dir=folder,
                    token=self._token,
                    endpoint=self._endpoint,
                )
            check_model(fetched, f"{remote.file} in {remote.repo}")
            put_in_place(fetched, final)


def fetch(hub: Hub, repo: str, targets: Mapping[str, str], *, meter: Meter) -> Sequence[Remote]:
    """Fetch files of *repo* and return what the hub says of them.

    Args:
        hub: where from.
        repo: the repository.
        targets: where to put each file.
        meter: told of the bytes of all of them together.

    Raises:
        UserError: there is no room for all of them, the hub says no, it was cut off too often,
            or what comes is not a model.
    """
    remotes = [hub.describe(repo, file) for file in targets]
    total = sum(r.bytes or 0 for r in remotes) if all(r.bytes for r in remotes) else None
    if total is not None:
        folder = os.path.dirname(next(iter(targets.values())))
        check_space(folder, total - sum(part_bytes(path) for path in targets.values()))
    before = 0
    for remote in remotes:
        final = targets[remote.file]
        hub.fetch(remote, final, _shifted(meter, before, total))
        before += os.path.getsize(final)
    return remotes


def _shifted(meter: Meter, before: int, total: int | None) -> Meter:
    return lambda done, _: meter(before + done, total)


class _Explaining:
    """Turns whatever the library raises into a sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Whatever is an Exception: the library's errors have no family of their own.
        if isinstance(error, Exception):
            raise UserError(_explained(self._what, error)) from None


def _explained(what: str, error: Exception) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _EXPLAINED:
            subject = "the hub" if kind.__name__ in _OF_THE_HUB else "the repository"
            return f"{what}: {subject} {_EXPLAINED[kind.__name__]}."
    first = next(iter(mask_urls(str(error)).splitlines()), "") or type(error).__name__
    return f"{what} could not be fetched: {first}"


_OF_THE_HUB: Final = frozenset(
    {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"}
)
