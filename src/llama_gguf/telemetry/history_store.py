"""Keeps the history of the charts across restarts, in a small file that is written by a thread.

A crash loses the last minute. No error prevents the gateway from serving: a file that cannot be
read is ignored, and replaced at the next write.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import wait
from typing import Final

from llama_gguf.events import EventLog
from llama_gguf.files.atomic import replace_file
from llama_gguf.net.threads import run_detached, start_detached
from llama_gguf.telemetry.timeseries import History, Snapshot

_log: Final = EventLog(__name__)

FOLDER: Final = "history"
EVERY_SECONDS: Final = 60.0
MAX_FILE_BYTES: Final = 4 << 20


class HistoryStore:
    """The file of one instance.

    Args:
        path: a missing folder is created.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._saved_changes = 0
        self._has_warned = False

    def load(self, history: History) -> None:
        """Continue from what is in the file, if there is one. Blocks."""
        try:
            with open(self._path, encoding="utf-8") as file:
                history.restore(file.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            _log.warning(
                "history_not_loaded",
                "The history of the dashboard in {file} cannot be read and starts again: {reason}",
                file=self._path,
                reason=str(error),
            )

    async def keep(self, history: History) -> None:
        """Write the file periodically."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if history.changes != self._saved_changes:
                await run_detached(self._job(history))

    def write_last(self, history: History, within_seconds: float) -> None:
        """Write what is new, and wait for that at most *within_seconds*, since a disk may hang."""
        if history.changes != self._saved_changes:
            wait([start_detached(self._job(history))], within_seconds)

    def _job(self, history: History) -> Callable[[], None]:
        """Writes what *history* contains now; for a thread."""
        self._saved_changes = history.changes
        snapshot = history.snapshot()
        return lambda: self.write(snapshot)

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file. Blocks."""
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            temporary = f"{self._path}.{os.getpid()}.new"
            replace_file(self._path, snapshot.dump().encode(), temporary=temporary)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "history_not_kept",
                    "The history of the dashboard cannot be saved in {file}: {reason}",
                    file=self._path,
                    reason=error.strerror or str(error),
                )
