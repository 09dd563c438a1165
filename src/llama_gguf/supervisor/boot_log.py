"""A log file for each start of ``serve``, with our own output from the first line.

The gateway writes its log to the same file. ``_boot/latest.txt`` names the latest one, for people
and scripts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from types import TracebackType
from typing import Final, Self

from llama_gguf.config.schema import LogSettings
from llama_gguf.files.atomic import replace_file
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.files.log_file import LogFile
from llama_gguf.files.retention import prune, stamped

LAST_LINES_SECONDS: Final = 2.0
BOOT_LOG: Final = "LLAMA_GGUF_BOOT_LOG"
"""The variable in which the gateway of ``serve`` gets the path; no setting."""


class BootLog(logging.Handler):
    """Writes log records in the format of standard error.

    The engine's lines are excluded: they have a separate file. LOG_LEVEL does not matter.

    Args:
        settings: LOG_DIR, INSTANCE_ID, LOG_MAX_BYTES, LOG_BACKUPS.
        path: of the file, if it has been started already; else a new one is.
    """

    def __init__(self, settings: LogSettings, path: str = "") -> None:
        super().__init__(logging.INFO)
        folder = os.path.join(settings.log_dir, "_boot")
        self.path = path or stamped(settings, folder, "boot")
        backups = settings.log_backups
        self._writer = LogWriter(
            LogFile(
                self.path,
                "boot log",
                max_bytes=settings.log_max_bytes,
                backups=backups,
                warns=not path,  # `serve` does, for both
            )
        )
        self._writer.start()
        if not path:
            self._writer.run(lambda: prune(settings, folder, "boot", but=self.path))
            self._writer.run(lambda: _name_latest(folder, self.path))
        root = logging.root
        if root.handlers:
            self.setFormatter(root.handlers[0].formatter)
        self.addFilter(lambda record: record.name != "llama-server")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record))
        except (
            Exception
        ):  # as in every handler of logging: a faulty message must not raise in its caller
            self.handleError(record)

    def reopen(self) -> None:
        self._writer.reopen()

    def __enter__(self) -> Self:
        logging.root.addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        logging.root.removeHandler(self)
        self._writer.close(LAST_LINES_SECONDS)


def _name_latest(folder: str, path: str) -> None:
    """Replace the content of latest.txt atomically: a reader finds the old name or the new one."""
    latest = os.path.join(folder, "latest.txt")
    temporary = f"{latest}.{os.getpid()}"
    # The log file's writer reports what is wrong with the folder.
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        replace_file(latest, os.fsencode(f"{path}\n"), temporary=temporary, mode=0o666)
