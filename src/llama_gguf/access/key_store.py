"""When the keys are loaded: at the start, on request, and when their file has changed.

All or nothing: on any error the keys that were loaded stay, and the error is in the log, in the
response and in a metric. The file is read off the loop, since a network disk may hang, and with a
pause every few lines, since the loop stands still while another thread computes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llama_gguf.access import key_file
from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.keys import KeyRing, Problem
from llama_gguf.errors import ReloadFailed, UserError
from llama_gguf.events import EventLog
from llama_gguf.files import stamps
from llama_gguf.net.threads import off_the_loop, pause

_log: Final = EventLog(__name__)

LOOK_SECONDS: Final = 1.0
REST_SECONDS: Final = 1.0
"""Between the end of one reload and the beginning of the next."""
MAX_PROBLEMS_LOGGED: Final = 10


@dataclass(frozen=True, slots=True)
class _Read:
    """What a look at the file brought: a ring, or why there is none."""

    stamp: stamps.Stamp | None
    """Taken before, so that a change during the read is seen by the next look."""
    ring: KeyRing | None
    gone: Sequence[str] = ()
    """Ids of keys that are no longer there."""
    error: str = ""
    exposed_mode: int | None = None


class KeyStore:
    """Of one gateway.

    Args:
        path: the keys file.
        principals: who gets the keys.
        count: called with ``success`` or ``failure``, once for each time.
    """

    def __init__(self, path: str, principals: Authenticator, count: Callable[[str], None]) -> None:
        self._path = path
        self._principals = principals
        self._count = count
        self._stamp: stamps.Stamp | None = None
        """Of the file as it was read last."""
        self._seen: stamps.Stamp | None = None
        self._lock = asyncio.Lock()
        self._rests_until = 0.0
        """On the loop's clock."""
        self._is_over = threading.Event()
        self._next: asyncio.Task[int | str] | None = None
        """A read to come: how many keys there were, or why there are none."""
        self.off_the_loop: Callable[[Callable[[], _Read]], Awaitable[_Read]] = off_the_loop

    def load(self) -> int:
        """Read the file at once, and return how many keys there are.

        Raises:
            ReloadFailed: it cannot be read; nothing has changed.
        """
        return self._take(self._read())

    async def reload(self) -> int:
        """Read the file as it is now or a little later, and return how many keys there are.

        Any number of callers share one read: it begins after they called, and up to
        ``REST_SECONDS`` after the last one has ended.

        Raises:
            ReloadFailed: it cannot be read; nothing has changed.
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
        """Returns the reason of a failure, since each caller raises an error of its own.

        One that they all raise would gather their frames in its traceback.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            rest = self._rests_until - loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
            self._next = None
            try:
                return self._take(await self.off_the_loop(lambda: self._read(pause)))
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
        gone = ring.gone_since(self._principals.ring, pause)
        return _Read(stamp, ring, gone, exposed_mode=key_file.exposed_mode(path))

    def _take(self, read: _Read) -> int:
        self._stamp = self._seen = read.stamp
        if read.ring is None:
            self._count("failure")
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
        self._principals.take(read.ring, read.gone)
        for key_id in self._principals.missing_admins():
            _log.warning(
                "admin_key_missing",
                "ADMIN_KEY_IDS names {key_id}, and no key has that id",
                key_id=key_id,
            )
        self._count("success")
        _log.info(
            "keys_loaded",
            "{keys} API keys loaded from {file}",
            keys=len(read.ring),
            file=self._path,
        )
        return len(read.ring)

    def watch(self) -> None:
        """Look at the file once a second, from a thread, and take up what has changed."""
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._keep_looking, args=(loop,), name="watch the keys", daemon=True
        ).start()

    def watch_no_more(self) -> None:
        self._is_over.set()

    def _keep_looking(self, loop: asyncio.AbstractEventLoop) -> None:
        last = self._stamp
        while not self._is_over.wait(LOOK_SECONDS):
            stamp = stamps.stamp(self._path)
            if stamp != last or stamp != self._stamp:
                last = stamp
                try:
                    loop.call_soon_threadsafe(self._on_look, stamp)
                except RuntimeError:  # it is closed: nobody wants to know any more
                    return

    def _on_look(self, stamp: stamps.Stamp | None) -> None:
        if self.is_due(stamp):
            self._begin_reload()

    def is_due(self, stamp: stamps.Stamp | None) -> bool:
        """Whether the file, as it looks now, has changed and is to be read.

        Another file under the name is whole. One that was written in place may be written to
        still, and one that is gone may come back, so these have to look the same twice.
        """
        read, seen, self._seen = self._stamp, self._seen, stamp
        if stamp == read:
            return False
        is_another = stamp is not None and (read is None or stamp.file != read.file)
        return is_another or stamp == seen


def _listed(problems: Sequence[Problem]) -> list[str]:
    """The first of them and how many more there are, so that no file can fill the log."""
    first = [f"line {p.line}: {p.reason}" for p in problems[:MAX_PROBLEMS_LOGGED]]
    more = len(problems) - len(first)
    return [*first, f"and {more} more"] if more else first
