"""llama-server's output: to a separate file for each start, and to the program's log."""

from __future__ import annotations

import logging
import re
from typing import Final

from llama_gguf.config.schema import LogSettings
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.files.log_file import LogFile
from llama_gguf.files.retention import engine_folder, prune, stamped

_engine: Final = logging.getLogger("llama-server")  # noqa: TID251 - lines of another program
_LEVEL: Final = re.compile(r"\d+\.\d\d\.\d\d\d\.\d\d\d ([DIWE]) ")
"""The start of its lines: the time since its start, and the letter of a level."""
_LEVELS: Final = {
    "D": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
}


def open_engine_log(settings: LogSettings) -> LogWriter:
    """Open the log of the next start; the oldest logs of earlier starts are removed."""
    folder = engine_folder(settings)
    path = stamped(settings, folder, "server")
    file = LogFile(
        path,
        "engine log",
        max_bytes=settings.log_max_bytes,
        backups=settings.log_backups,
    )
    writer = LogWriter(file, _echo)
    writer.start()
    writer.run(lambda: prune(settings, folder, "server", but=path))
    return writer


def _echo(line: str) -> None:
    match = _LEVEL.match(line)
    if line:
        _engine.log(_LEVELS[match[1]] if match else logging.INFO, "%s", line)
