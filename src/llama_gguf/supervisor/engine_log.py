"""llama-server's output: to a separate file for each start, and to the program's log."""

from __future__ import annotations

import logging
import re
from typing import Final

from llama_gguf import events
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
_USUAL: Final = ("need to evaluate at least 1 token for each active slot", "n_past was set to ")
"""In two warnings for each prompt that is completely cached, which is no fault."""


def open_engine_log(settings: LogSettings, replica: str = "0") -> LogWriter:
    """Open the log of the next start; the oldest logs of earlier starts are removed.

    The files of *replica* "0" have the name that the engine's log has if there is only one.
    """
    kind = "server" if replica == "0" else f"server-{replica}"
    folder = engine_folder(settings)
    path = stamped(settings, folder, kind)
    file = LogFile(
        path,
        "engine log",
        max_bytes=settings.log_max_bytes,
        backups=settings.log_backups,
    )
    label = events.replica.get()
    writer = LogWriter(file, _echo if not label else lambda line: _echo(line, f"[{label}] "))
    writer.start()
    writer.run(lambda: prune(settings, folder, kind, but=path))
    return writer


def _echo(line: str, prefix: str = "") -> None:
    if line:
        _engine.log(_level_of(line), "%s%s", prefix, line)


def _level_of(line: str) -> int:
    match = _LEVEL.match(line)
    level = _LEVELS[match[1]] if match else logging.INFO
    is_usual = level == logging.WARNING and any(text in line for text in _USUAL)
    return logging.INFO if is_usual else level
