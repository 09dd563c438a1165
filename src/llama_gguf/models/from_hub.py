"""Downloads a model from a model hub, with huggingface_hub.

Resumes and verifies as ``from_url``, with the SHA-256 that the hub has, except for files over
``MAX_PLAIN_BYTES``: the library downloads those, restarts them after an interruption, and only the
GGUF header and the size are verified here. Every failure is a ``UserError``.

The library knows the hub: endpoint, login, list of files, and the reasons of a refusal. The
content is downloaded like that of any URL, since the library restarts an interrupted download:
docs/adr/0013-a-hubs-bytes-are-fetched-by-us.md. The library is an extra, imported only here and
only when a hub is used.
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
from llama_gguf.models.download_files import TEMPORARY, check_model, check_space, put_in_place
from llama_gguf.models.part_file import part_bytes
from llama_gguf.models.progress import Meter, watching
from llama_gguf.models.urls import UNTRUSTED, is_untrusted

MAX_PLAIN_BYTES: Final = 50_000_000_000
"""Larger files are only available in chunks, which the library assembles."""

# By name: the base classes of the library's errors changed with each of its major versions.
_EXPLAINED: Final[Mapping[str, str]] = {
    "GatedRepoError": "requires you to accept its terms; do so on the hub, and set HF_TOKEN",
    "RepositoryNotFoundError": "does not exist, or is private: for a private one, set HF_TOKEN",
    "RemoteEntryNotFoundError": "has no such file",
    "EntryNotFoundError": "has no such file",
    "LocalEntryNotFoundError": "cannot be reached; try again later",
    "OfflineModeIsEnabled": "was not contacted, because HF_HUB_OFFLINE is set",
    "ConnectError": "cannot be reached; check the network, and https_proxy and HF_ENDPOINT if set",
    "TimeoutException": "does not respond; try again later",
}


@dataclass(frozen=True, slots=True)
class Remote:
    """A file in a repository."""

    repo: str
    file: str
    url: str
    """Of exactly this version of the file."""
    bytes: int | None
    sha256: str
    """Empty for small files, which the hub stores in git and without a SHA-256."""


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
        utils.disable_progress_bars()  # the meter reports progress
        self._environ = environ
        self._endpoint = _value(environ, "HF_ENDPOINT").rstrip("/") or None
        # With None, the library uses a stored login.
        self._token = _value(environ, "HF_TOKEN") or None
        self._login: dict[str, str] = {
            name: value
            for name, value in utils.build_hf_headers(token=self._token).items()
            if name.lower() == "authorization"
        }

    def files(self, repo: str) -> list[str]:
        """All files of *repo*; raises as ``fetch`` does."""
        with _Explaining(repo):
            api = self._library.HfApi(endpoint=self._endpoint, token=self._token)
            return list(api.list_repo_files(repo))

    def describe(self, repo: str, file: str) -> Remote:
        """Version, size and hash of *file*; raises as ``fetch`` does."""
        with _Explaining(f"{file} in {repo}"):
            url = self._library.hf_hub_url(repo, file, endpoint=self._endpoint)
            metadata = self._library.get_hf_file_metadata(
                url, token=self._token, endpoint=self._endpoint
            )
            pinned = self._library.hf_hub_url(
                repo, file, revision=metadata.commit_hash, endpoint=self._endpoint
            )
        etag = metadata.etag or ""
        sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else ""
        return Remote(repo, file, url=pinned, bytes=metadata.size, sha256=sha256)

    def fetch(self, remote: Remote, final: str, meter: Meter) -> None:
        """Download one file to *final*, resuming an earlier attempt; raises as ``fetch`` does."""
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
        """Download with the library, into a temporary directory; it cannot resume."""
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


def _value(environ: Mapping[str, str], name: str) -> str:
    """The variable *name* without quotes, which `docker run --env-file` leaves around a value."""
    return environ.get(name, "").strip(" \t\r\n\"'")


def fetch(hub: Hub, repo: str, targets: Mapping[str, str], *, meter: Meter) -> Sequence[Remote]:
    """Download files of *repo*, and return their versions, sizes and hashes.

    A file is at its target only when it is complete and verified. Files that are complete when
    another one fails stay; an incomplete one is resumed by the next call.

    Args:
        hub: the source.
        repo: the repository.
        targets: the path for each file.
        meter: called with the bytes of all files together.

    Raises:
        UserError: there is no space for all of them, the hub cannot be reached or refuses the
            request, the connection broke too often, or the content is not the expected file or
            not a model.
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
    """Turns the library's exceptions into ``UserError``."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Any Exception: the library's errors have no common base class.
        if isinstance(error, Exception):
            raise UserError(_explained(self._what, error)) from None


def _explained(what: str, error: Exception) -> str:
    if is_untrusted(error):
        return f"{what} could not be fetched: {UNTRUSTED}"
    for kind in type(error).__mro__:
        if kind.__name__ in _EXPLAINED:
            subject = "the hub" if kind.__name__ in _OF_THE_HUB else "the repository"
            return f"{what}: {subject} {_EXPLAINED[kind.__name__]}."
    first = next(iter(mask_urls(str(error)).splitlines()), "") or type(error).__name__
    return f"{what} could not be fetched: {first}"


_OF_THE_HUB: Final = frozenset(
    {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"}
)
