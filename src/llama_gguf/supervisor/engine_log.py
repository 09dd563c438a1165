"""llama-server's output, written to a file of its own per start."""

from __future__ import annotations

import contextlib
import logging
import os
from datetime import UTC, datetime
from typing import IO, Final

from llama_gguf.core.settings import Settings

_log: Final = logging.getLogger(__name__)


class EngineLog:
    """A file in LOG_DIR; when it cannot be written, serving goes on and one warning is given."""

    def __init__(self, settings: Settings) -> None:
        name = f"llama-{settings.worker_type}" if settings.worker_type else settings.log_name
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        folder = os.path.join(settings.log_dir, name)
        self.path = os.path.join(folder, f"{stamp}_server_{settings.instance_id}.log")
        self._file: IO[str] | None = None
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            self._complain(error)

    def write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
        except OSError as error:
            self._complain(error)
            # Closing writes what is buffered, and fails as the write did.
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _complain(self, error: OSError) -> None:
        _log.warning("the engine's log %s cannot be written: %s", self.path, error.strerror)
