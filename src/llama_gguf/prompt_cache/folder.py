"""The folder of the states: a file and its description for each, and what is known of models.

    NAME.state     as llama-server writes it
    NAME.json      its description; without one, a file is no state
    NAME.saving    a state that is being written
    restoring.NAME the states that an engine is restoring: if it dies of them, they are removed
    models.json    digests of model files, and for which models restores do not help

NAME is random, 16 hexadecimal digits. Files with other names belong to the user and are left alone.
Several instances may share it. All calls block, and a disk may be slow: they run on a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from llama_gguf.config.schema import PromptCacheSettings
from llama_gguf.files.atomic import replace_file
from llama_gguf.prompt_cache.choice import evicted, is_superseded
from llama_gguf.prompt_cache.entry import (
    HEADER_BYTES,
    TOKEN_BYTES,
    Entry,
    token_count,
    tokens_in,
)
from llama_gguf.values import replace
from llama_gguf.wall_clock import wall_now

STATE: Final = ".state"
_ABOUT: Final = ".json"
SAVING: Final = ".saving"
_RESTORING: Final = "restoring."
_MODELS: Final = "models.json"
_OURS: Final = r"(?:[0-9a-f]{16}|trial|models|restoring\.[\w-]+)(?:\.json|\.state)?(?:\.saving)?"
_NAME: Final = r"[0-9a-f]{16}"
_STALE_SECONDS: Final = 3600.0
"""After which a file that is being written has been forgotten by its writer."""
_MAX_SKEW_SECONDS: Final = 3600.0
"""A state that was used later than this from now is from a clock that was wrong. It would stay the
most recent one, and take the room of all others."""
MAX_MODELS: Final = 200


class Folder:
    """The states of all models.

    Args:
        path: of the folder.
        max_bytes: of all states together.
        instance: the name of this machine, in a folder that several share.
    """

    def __init__(self, path: str, max_bytes: int, instance: str = "") -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._instance = instance

    @classmethod
    def of(cls, settings: PromptCacheSettings, instance: str = "") -> Folder:
        return cls(settings.prompt_cache_dir, settings.prompt_cache_size, instance)

    def open(self) -> None:
        """Create it, for this user alone, and remove what an earlier run has left behind.

        A folder that exists keeps its mode if it contains other files too.

        Raises:
            OSError: it cannot be written to.
        """
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        names = set(os.listdir(self.path))
        ours = set(filter(re.compile(_OURS).fullmatch, names))
        if ours == names:
            with contextlib.suppress(PermissionError):  # it may belong to another user
                os.chmod(self.path, 0o700)
        trial = self._path("trial", SAVING)
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT, 0o600))
        self._unlink(trial)  # another instance may have done so
        self._sweep(ours)

    def _sweep(self, names: Iterable[str]) -> None:
        """Remove those of our files, *names*, that belong to no state."""
        for name in names:
            stem, suffix = os.path.splitext(name)
            is_alone = suffix == STATE and stem + _ABOUT not in names
            if (suffix == SAVING or is_alone) and self._age(name) > _STALE_SECONDS:
                self._unlink(os.path.join(self.path, name))

    def _age(self, name: str) -> float:
        try:
            return wall_now() - os.stat(os.path.join(self.path, name)).st_mtime
        except OSError:
            return 0.0

    def _path(self, name: str, suffix: str) -> str:
        return os.path.join(self.path, name + suffix)

    @staticmethod
    def _unlink(path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    # What is there ------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All states whose files are whole; those that are not are removed."""
        found: list[Entry] = []
        try:
            names = os.listdir(self.path)
        except OSError:
            return found
        for file_name in names:
            name, suffix = os.path.splitext(file_name)
            if suffix != _ABOUT or not re.fullmatch(_NAME, name):
                continue
            try:
                with open(self._path(name, _ABOUT), "rb") as file:
                    entry = Entry.from_json(file.read())
                is_whole = os.stat(self._path(name, STATE)).st_size == entry.size
            except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
                is_whole = False
            if is_whole and entry.name == name:
                is_future = entry.used_at > wall_now() + _MAX_SKEW_SECONDS
                found.append(replace(entry, used_at=0.0) if is_future else entry)
            else:
                self.remove(name)
        return found

    def remove(self, name: str) -> None:
        self._unlink(self._path(name, _ABOUT))  # first: without it, the other is no state
        self._unlink(self._path(name, STATE))

    def remove_of(self, owners: Iterable[str]) -> int:
        """Remove all states of which one of *owners* may have sent the content; their number."""
        gone = set(owners)
        affected = [entry for entry in self.entries() if gone.intersection(entry.owners)]
        for entry in affected:
            self.remove(entry.name)
        return len(affected)

    def owners(self) -> set[str]:
        return {owner for entry in self.entries() for owner in entry.owners}

    # Saving -------------------------------------------------------------------------------------

    def begin(self, name: str, expected_bytes: int, used_at: float) -> str:
        """Make room, and an empty file that only this user can read; the engine writes to it.

        Args:
            name: of the state.
            expected_bytes: about its size; 0 if unknown.
            used_at: of the state. It takes no room from those that were used after it.

        Returns:
            The name of the file.

        Raises:
            OSError: it cannot be created, or the disk has no room.
        """
        if expected_bytes > self._max_bytes:
            raise OSError(f"{expected_bytes} bytes are more than PROMPT_CACHE_SIZE")
        gone = evicted(self.entries(), self._max_bytes, expected_bytes)
        if any(entry.used_at > used_at for entry in gone):
            raise OSError("prompts that were used later need all of PROMPT_CACHE_SIZE")
        for entry in gone:
            self.remove(entry.name)
        path = self._path(name, SAVING)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        stats = os.statvfs(self.path)
        if stats.f_bavail * stats.f_frsize < expected_bytes:
            self.discard(name)
            raise OSError(f"the disk has no room for {expected_bytes} bytes")
        return name + SAVING

    def discard(self, name: str) -> None:
        """What was begun is not to be kept."""
        self._unlink(self._path(name, SAVING))

    def commit(self, entry: Entry) -> None:
        """Keep what the engine has written; states that it continues are removed.

        Raises:
            OSError: it is not whole, or cannot be kept.
        """
        path = self._path(entry.name, SAVING)
        try:
            if os.stat(path).st_size != entry.size:
                raise OSError("the file is shorter than what llama-server has written")
            tokens = _read_tokens(path)
            if entry.size > self._max_bytes:
                raise OSError(f"{entry.size} bytes are more than PROMPT_CACHE_SIZE")
            if tokens is None:
                raise OSError("the file has another form than expected")
            before = self.entries()
            os.rename(path, self._path(entry.name, STATE))
            about = self._path(entry.name, _ABOUT)
            replace_file(about, entry.to_json(), temporary=about + SAVING)
        except OSError:
            self.discard(entry.name)
            self.remove(entry.name)
            raise
        for old in before:
            if old.validity == entry.validity and old.tokens <= entry.tokens:
                its_tokens = _read_tokens(self._path(old.name, STATE))
                if its_tokens is None or is_superseded(its_tokens, tokens):
                    self.remove(old.name)
        for old in evicted(self.entries(), self._max_bytes):
            self.remove(old.name)

    def tokens_of(self, name: str) -> tuple[int, ...]:
        """The tokens of a state; none if it is gone."""
        return _read_tokens(self._path(name, STATE)) or ()

    # Restoring ----------------------------------------------------------------------------------

    def _marker(self, engine: str) -> str:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{self._instance}.{engine}")
        return os.path.join(self.path, _RESTORING + name)

    def begin_restore(self, engine: str, names: Sequence[str]) -> None:
        """Note which states *engine* restores, for the case that it dies of them."""
        marker = self._marker(engine)
        with contextlib.suppress(OSError):
            replace_file(marker, " ".join(names).encode(), temporary=marker + SAVING)

    def end_restore(self, engine: str) -> None:
        self._unlink(self._marker(engine))

    def drop_failed(self, engine: str) -> int:
        """Remove the states whose restore into *engine* has never ended; their number."""
        try:
            with open(self._marker(engine), encoding="utf-8") as file:
                names = file.read().split()
        except OSError:
            return 0
        self.end_restore(engine)
        for name in filter(re.compile(_NAME).fullmatch, names):
            self.remove(name)
        return len(names)

    # What is known of models --------------------------------------------------------------------

    def noted(self, key: str) -> Any:
        """What ``note`` has stored by *key*; None if nothing."""
        return self._notes().get(key)

    def note(self, key: str, value: Any) -> None:
        """Remember *value*, which is JSON."""
        notes = {**self._notes(), key: value}
        kept = dict(list(notes.items())[-MAX_MODELS:])
        path = os.path.join(self.path, _MODELS)
        with contextlib.suppress(OSError):
            replace_file(path, json.dumps(kept).encode(), temporary=path + SAVING)

    def _notes(self) -> Mapping[str, Any]:
        try:
            with open(os.path.join(self.path, _MODELS), "rb") as file:
                found = json.loads(file.read())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _read_tokens(path: str) -> tuple[int, ...] | None:
    try:
        with open(path, "rb") as file:
            count = token_count(file.read(HEADER_BYTES))
            if count is None:
                return None
            if HEADER_BYTES + count * TOKEN_BYTES > os.fstat(file.fileno()).st_size:
                return None  # damaged: do not allocate what it names
            return tokens_in(file.read(count * TOKEN_BYTES))
    except OSError:
        return None
