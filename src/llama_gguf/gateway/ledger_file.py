"""Keeps the ledger across restarts: a small file, written off the loop when something has changed.

What it loses is what happened since it was written last, a few seconds. It never keeps the gateway
from serving: a file that cannot be read is set aside, and one that cannot be written is said once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from typing import Final

from llama_gguf.core.ledger import Ledger
from llama_gguf.core.settings import Settings
from llama_gguf.events import EventLog
from llama_gguf.gateway.threads import off_the_loop

_log: Final = EventLog(__name__)

EVERY_SECONDS: Final = 5.0
MAX_FILE_BYTES: Final = 64 << 20
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")


def path_of(settings: Settings) -> str:
    """Of the file; instances that share DATA_DIR have one each."""
    name = _UNFIT.sub("_", settings.instance_id).lstrip(".") or "gateway"
    return os.path.join(settings.data_dir, "usage", f"{name}.json")


class LedgerFile:
    """The file of one ledger.

    Args:
        path: its folder is made when it is missing.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._has_complained = False
        self._lock = threading.Lock()
        """The last write may come while another one is under way."""

    def load(self, now: float) -> Ledger:
        """What was kept; a new ledger, begun at *now*, when there is nothing that can be read."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return Ledger.load(file.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            self._set_aside(error)
        return Ledger(now)

    def _set_aside(self, error: Exception) -> None:
        aside = f"{self._path}.unreadable"
        _log.warning(
            "usage_lost",
            "The usage in {file} cannot be read: {reason}. "
            "Counting starts from zero; the file is renamed to {renamed_to}",
            file=self._path,
            reason=str(error),
            renamed_to=aside,
        )
        with contextlib.suppress(OSError):
            os.replace(self._path, aside)

    async def keep(self, ledger: Ledger) -> None:
        """Write *ledger* again and again, whenever it has changed."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if ledger.has_changed:
                text = ledger.dump()
                await off_the_loop(lambda text=text: self.write(text))  # type: ignore[misc]

    def write_last(self, ledger: Ledger, within_seconds: float) -> None:
        """Write *ledger*, and wait for that, but not for ever: a disk may hang."""
        if ledger.has_changed:
            text = ledger.dump()
            writer = threading.Thread(target=lambda: self.write(text), daemon=True)
            writer.start()
            writer.join(within_seconds)

    def write(self, text: str) -> None:
        """Put *text* in the file's place, whole or not at all."""
        try:
            with self._lock:
                self._replace(text)
            self._has_complained = False
        except OSError as error:
            if not self._has_complained:
                _log.warning(
                    "usage_not_kept",
                    "The usage cannot be saved in {file}: {reason}",
                    file=self._path,
                    reason=error.strerror,
                )
            self._has_complained = True

    def _replace(self, text: str) -> None:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        new = f"{self._path}.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, self._path)
