"""Loads the keys: at the start, on request, and when their file has changed.

All or nothing: on any error, the previous keys stay in force, and the error is logged, counted
and returned. The file is read on a thread, since a network disk may hang. That thread pauses every
few lines, since the event loop cannot run while another thread holds the interpreter lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from llama_gguf.access import key_file
from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.keys import KeyRing, Problem
from llama_gguf.errors import ReloadFailed, UserError
from llama_gguf.events import EventLog
from llama_gguf.files import stamps
from llama_gguf.net.threads import pause, run_detached
from llama_gguf.values import Value

_log: Final = EventLog(__name__)

LOOK_SECONDS: Final = 1.0
REST_SECONDS: Final = 1.0
"""Minimum time between the end of one reload and the start of the next."""
MAX_PROBLEMS_LOGGED: Final = 10


class _Read(Value):
    """The result of reading the file: a ring, or the reason why there is none."""

    stamp: stamps.Stamp | None
    """Taken before the read, so that a change during the read is detected afterwards."""
    ring: KeyRing | None
    gone: Sequence[str] = ()
    """Ids of keys that have been removed."""
    error: str = ""
    exposed_mode: int | None = None


class KeyStore:
    """Loads the keys file into the authenticator, and reloads it.

    Args:
        path: the keys file.
        authenticator: receives the keys.
        count: called once per load, with whether it succeeded.
    """

    def __init__(
        self,
        path: str,
        authenticator: Authenticator,
        count: Callable[[bool], None],
    ) -> None:
        self._path = path
        self._authenticator = authenticator
        self._count = count
        self._stamp: stamps.Stamp | None = None
        """Of the file when it was last read."""
        self._seen: stamps.Stamp | None = None
        """Of the file when it was last checked for changes."""
        self._lock = asyncio.Lock()
        self._rests_until = 0.0
        """On the loop's clock."""
        self._is_over = threading.Event()
        self._next: asyncio.Task[int | str] | None = None
        """A reload that has not started to read; its result is as for ``_reload``."""
        self.off_the_loop: Callable[[Callable[[], _Read]], Awaitable[_Read]] = run_detached

    def load(self) -> int:
        """Read the file, blocking, and return the number of keys.

        Raises:
            ReloadFailed: it cannot be read; the previous keys stay in force.
        """
        return self._apply(self._read())

    async def reload(self) -> int:
        """Read the file on a thread, and return the number of keys.

        Concurrent callers share one read. It starts after all of them have called, so that each
        gets what was in the file at that time or later, and at least ``REST_SECONDS`` after the
        end of the previous read.

        Raises:
            ReloadFailed: it cannot be read; the previous keys stay in force.
        """
        outcome = await asyncio.shield(self._begin_reload())
        if isinstance(outcome, str):
            raise ReloadFailed(outcome)
        return outcome

    def _begin_reload(self) -> asyncio.Task[int | str]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._reload(), name="reload keys")
        return self._next

    async def _reload(self) -> int | str:
        """Return the number of keys, or the reason of a failure.

        Each caller raises its own error: a shared one would collect the frames of all callers in
        its traceback.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            rest = self._rests_until - loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
            self._next = None
            try:
                return self._apply(await self.off_the_loop(lambda: self._read(pause)))
            except ReloadFailed as error:
                return error.message
            finally:
                self._rests_until = loop.time() + REST_SECONDS

    def _read(self, pause: Callable[[], None] | None = None) -> _Read:
        path = self._path
        stamp = stamps.stamp(path)
        try:
            ring = KeyRing.parse(key_file.read(path), pause)
        except UserError as error:
            return _Read(stamp, None, error=str(error))
        gone = ring.gone_since(self._authenticator.ring, pause)
        return _Read(stamp, ring, gone, exposed_mode=key_file.exposed_mode(path))

    def _apply(self, read: _Read) -> int:
        """Log and count the result of a read; replace the keys if it succeeded."""
        self._stamp = self._seen = read.stamp
        if read.ring is None:
            self._count(False)
            _log.error(
                "keys_not_loaded",
                "The keys were not loaded: {reason}",
                reason=". ".join(read.error.splitlines()),
            )
            raise ReloadFailed(f"The keys were not loaded: {read.error}")
        if read.ring.problems:
            _log.warning(
                "keys_lines_skipped",
                "Lines skipped in {file}: {count}",
                file=self._path,
                count=len(read.ring.problems),
                lines=_listed(read.ring.problems),
            )
        if read.exposed_mode is not None:
            _log.warning(
                "keys_file_exposed",
                "Other users can access {file} (mode {mode}); restrict it with: chmod 600 {file}",
                file=self._path,
                mode=f"{read.exposed_mode:04o}",
            )
        self._authenticator.take(read.ring, read.gone)
        for key_id in self._authenticator.missing_admins():
            _log.warning(
                "admin_key_missing",
                "ADMIN_KEY_IDS names {key_id}, and no key has that id",
                key_id=key_id,
            )
        self._count(True)
        _log.info(
            "keys_loaded",
            "API keys loaded from {file}: {keys}",
            keys=len(read.ring),
            file=self._path,
        )
        return len(read.ring)

    def watch(self) -> None:
        """Start a thread that checks the file once a second and reloads it after a change."""
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._keep_watching, args=(loop,), name="watch the keys", daemon=True
        ).start()

    def watch_no_more(self) -> None:
        """Stop the thread that ``watch`` has started."""
        self._is_over.set()

    def _keep_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        last = self._stamp
        while not self._is_over.wait(LOOK_SECONDS):
            stamp = stamps.stamp(self._path)
            if stamp != last or stamp != self._stamp:
                last = stamp
                try:
                    loop.call_soon_threadsafe(self._on_look, stamp)
                except RuntimeError:  # the loop is closed
                    return

    def _on_look(self, stamp: stamps.Stamp | None) -> None:
        if self.check(stamp):
            self._begin_reload()

    def check(self, stamp: stamps.Stamp | None) -> bool:
        """Note the file's current *stamp*, and return whether it has changed and should be read.

        1. Unchanged since it was last read: no.
        2. Replaced by another file, as by a rename: yes, since that file is complete.
        3. Written in place, or missing: once two checks in a row have the same stamp. A writer
           may not be finished, and a missing file may be about to be replaced.
        """
        read, seen, self._seen = self._stamp, self._seen, stamp
        if stamp == read:
            return False  # 1
        is_another = stamp is not None and (read is None or stamp.file != read.file)
        return is_another or stamp == seen  # 2, 3


def _listed(problems: Sequence[Problem]) -> list[str]:
    """The first problems and the number of further ones: the log entry's size is bounded."""
    first = [f"line {p.line}: {p.reason}" for p in problems[:MAX_PROBLEMS_LOGGED]]
    more = len(problems) - len(first)
    return [*first, f"and {more} more"] if more else first
