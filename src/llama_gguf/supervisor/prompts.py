"""What all engines of one `serve` share of the prompt cache: its folder, and what is known of it.

Nothing here fails: a disk that is full, slow or read-only is reported once, and serving continues.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from llama_gguf.events import EventLog
from llama_gguf.files import stamps
from llama_gguf.net.threads import run_detached
from llama_gguf.prompt_cache import model_digest
from llama_gguf.prompt_cache.entry import Entry, validity_of
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.supervisor.launch import PromptSource

_log: Final = EventLog(__name__)
_T = TypeVar("_T")

DISK_SECONDS: Final = 20.0
"""For what a start of the engine waits for: a network disk may hang."""
DISCARD_SECONDS: Final = 2.0
"""The same for a stop. What stays is removed by a later start."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at the keys file."""


class Owners(Protocol):
    """As ``access.owners.KeysFile``."""

    path: str

    def revoked(self, owners: Collection[str]) -> set[str]: ...


class Run(Protocol):
    """As ``run_detached``."""

    async def __call__(self, work: Callable[[], _T]) -> _T: ...


class Totals:
    """Since the start of `serve`, of all engines."""

    def __init__(self) -> None:
        self.saves = 0
        self.save_failures = 0
        self.restores = 0
        self.restore_failures = 0
        self.bytes = 0
        """On disk, at the last change; of every model."""
        self.files = 0


class PromptCache:
    """Shared by the keepers of all engines.

    Args:
        folder: of the states.
        owners: whose content may be kept.
        run: runs what may block.
    """

    def __init__(self, folder: Folder, owners: Owners, run: Run = run_detached) -> None:
        self._unlimited = run
        self._folder = folder
        self._owners = owners
        self.totals = Totals()
        self._reported: set[str] = set()
        self._digests: dict[str, asyncio.Task[None]] = {}
        """The work on each, by the identity of the model's files."""
        self._bytes_per_token = 0.0

    # Which states are valid -----------------------------------------------------------------------

    async def validity(self, source: PromptSource) -> str | None:
        """The name of what a state must fit; None while the model's digest is not known."""

        def find() -> str | None:
            if not source.identity or model_digest.identity(source.files) != source.identity:
                return None
            digest = self._folder.noted(digest_key(source.identity))
            return validity(source, digest) if isinstance(digest, str) else None

        return await self._run(find)

    def compute_digest(self, source: PromptSource) -> None:
        """Compute the digest of a model in the background, unless it is known."""
        if source.identity and source.identity not in self._digests:
            self._digests[source.identity] = asyncio.get_running_loop().create_task(
                self._compute_digest(source), name="read the model for its digest"
            )

    async def _compute_digest(self, source: PromptSource) -> None:
        key = digest_key(source.identity)

        def read() -> None:
            if self._folder.noted(key) is None:
                # If the file has changed meanwhile, nothing will have this identity again.
                self._folder.note(key, model_digest.digest(source.files))

        try:
            await self._unlimited(read)
        except (OSError, RuntimeError) as error:  # or no thread can be started now
            self.report("the model cannot be read", _reason(error))

    async def helps(self, valid: str) -> bool | None:
        """Whether restores have been seen to help; None if that has not been tried."""
        found = await self._run(lambda: self._folder.noted(verdict_key(valid)))
        return found if isinstance(found, bool) else None

    async def note_verdict(self, valid: str, *, helps: bool) -> None:
        """Remember whether restores help; if not, all states of this model are removed."""

        def note() -> None:
            self._folder.note(verdict_key(valid), helps)
            if not helps:
                for entry in self._folder.entries():
                    if entry.validity == valid:
                        self._folder.remove(entry.name)

        await self._run(note)

    async def entries(self, valid: str) -> list[Entry]:
        """The states that fit, and whose owners all have their keys."""

        def look() -> list[Entry]:
            self._remove_revoked()
            entries = self._folder.entries()
            self._count(entries)
            return [entry for entry in entries if entry.validity == valid]

        return await self._run(look)

    # Owners -------------------------------------------------------------------------------------

    async def watch_keys(self) -> None:
        """Remove what belongs to revoked keys whenever the keys file has changed."""
        path = self._owners.path
        seen: stamps.Stamp | None = None
        while path:
            try:
                stamp = await self._unlimited(lambda: stamps.stamp(path))
                if stamp != seen:
                    await self._unlimited(self._remove_revoked)
                    seen = stamp
            except (OSError, RuntimeError) as error:  # or no thread can be started now
                self.report("states of revoked keys are not removed", _reason(error))
            await asyncio.sleep(LOOK_SECONDS)

    def _remove_revoked(self) -> None:
        gone = self._owners.revoked(self._folder.owners())
        count = self._folder.remove_of(gone) if gone else 0
        if count:
            _log.info(
                "prompts_of_revoked_keys",
                "Removed saved prompts of API keys that have been revoked or rotated: {files}",
                files=count,
            )
            self._count(self._folder.entries())

    async def are_revoked(self, owners: Collection[str]) -> bool:
        return bool(await self._run(lambda: self._owners.revoked(owners)))

    # Files --------------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Create the folder if it has disappeared; whether it can be written to."""

        def opened() -> bool:
            self._folder.open()
            return True

        return bool(await self._try("the folder cannot be used", opened))

    async def begin(self, name: str, tokens: int | None, used_at: float) -> str | None:
        """The name of an empty file for the state of a slot; None if there can be none."""
        expected = round((tokens or 0) * self._bytes_per_token)
        return await self._try(
            "a prompt was not saved", lambda: self._folder.begin(name, expected, used_at)
        )

    async def discard(self, name: str) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            async with asyncio.timeout(DISCARD_SECONDS):
                await self._unlimited(lambda: self._folder.discard(name))

    async def commit(self, entry: Entry) -> bool:
        """Keep a file that has been written; whether it is there now."""

        def commit() -> bool:
            self._folder.commit(entry)
            # A key that was removed before this is noticed here, and after it by ``watch_keys``.
            if self._owners.revoked(entry.owners):
                self._folder.remove(entry.name)
            entries = self._folder.entries()
            self._count(entries)
            return any(each.name == entry.name for each in entries)

        is_kept = bool(await self._try("a prompt was not saved", commit))
        if entry.tokens:
            self._bytes_per_token = entry.size / entry.tokens
        return is_kept

    async def remove(self, name: str) -> None:
        await self._run(lambda: self._folder.remove(name))

    async def tokens_of(self, name: str) -> tuple[int, ...]:
        return await self._run(lambda: self._folder.tokens_of(name))

    async def begin_restore(self, engine: str, names: Sequence[str]) -> None:
        await self._run(lambda: self._folder.begin_restore(engine, names))

    async def end_restore(self, engine: str) -> None:
        await self._run(lambda: self._folder.end_restore(engine))

    async def drop_failed(self, engine: str) -> int:
        return await self._run(lambda: self._folder.drop_failed(engine))

    def _count(self, entries: Sequence[Entry]) -> None:
        self.totals.bytes = sum(entry.size for entry in entries)
        self.totals.files = len(entries)

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            async with asyncio.timeout(DISK_SECONDS):
                return await self._unlimited(work)
        except TimeoutError:
            raise TimeoutError(f"the disk did not respond within {DISK_SECONDS:g} s") from None
        except RuntimeError as error:  # no thread can be started now
            raise OSError(str(error)) from None

    async def _try(self, what: str, work: Callable[[], _T]) -> _T | None:
        try:
            return await self._run(work)
        except OSError as error:
            self.report(what, _reason(error))
            return None

    def report(self, what: str, reason: str) -> None:
        """Log a failure, the first time."""
        if what not in self._reported:
            self._reported.add(what)
            _log.warning(
                "prompt_cache_failed",
                "Prompt cache: {what} ({reason}). Serving continues; this is reported once",
                what=what,
                reason=reason,
            )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def digest_key(identity: str) -> str:
    return f"digest {identity}"


def verdict_key(valid: str) -> str:
    return f"helps {valid}"


def validity(source: PromptSource, digest: str) -> str:
    return validity_of(digest, source.build, source.options)


def known_verdict(source: PromptSource, noted: Callable[[str], Any]) -> bool | None:
    """Whether restores help, by an earlier run; None if unknown. *noted* as of the folder."""
    digest = noted(digest_key(source.identity))
    found = noted(verdict_key(validity(source, digest))) if isinstance(digest, str) else None
    return found if isinstance(found, bool) else None


def facts_of(totals: Totals, restored: Sequence[int], life: int, rate: float) -> Mapping[str, Any]:
    """For metrics and people, as part of the engine's status.

    Args:
        totals: of all engines.
        restored: by state, the tokens that this life of the engine began with.
        life: a number of this life.
        rate: seconds that the engine needs to compute one of these tokens; 0 = unknown.
    """
    return {
        **vars(totals),
        "restored": list(restored),
        "life": life,
        "seconds_per_token": rate,
    }
