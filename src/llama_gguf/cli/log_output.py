"""Logging: to standard error, as text or as one JSON object a line.

On a terminal, text is made for people: local time, levels in colour, and each line first erases the
line of the terminal, which may have the progress bar of this process or of another.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, TextIO

from llama_gguf.cli.terminal import CLEAR_LINE, has_colours, moves_cursor
from llama_gguf.config.schema import LogSettings
from llama_gguf.events import event_of, facts_of
from llama_gguf.wall_clock import iso_time

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Formatter(logging.Formatter):
    def formatException(self, ei: _ExcInfo) -> str:
        try:
            return super().formatException(ei)
        except Exception:  # `traceback` is loaded only now: without a file descriptor, or at exit
            return f"{type(ei[1]).__name__}: {ei[1]}"


class _Text(_Formatter):
    """One line per record; its further lines follow, indented.

    Therefore no content of a fact or a library's message can forge another record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        # The logger's name if it is not ours, such as llama-server's.
        name = "" if record.name.startswith("llama_gguf") else f"{record.name}: "
        head = f"{self._head(record)} {name}{_printable(record.message)}"
        lines = facts_of(record).get("lines")
        return "\n    ".join([head, *map(_printable, lines if isinstance(lines, list) else ())])

    def _head(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname:<7}"

    def formatException(self, ei: _ExcInfo) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {_printable(line)}" for line in lines)


_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}
"""Parameters of SGR (ECMA-48); other levels have the terminal's colour."""


class _TerminalText(_Text):
    """For a terminal: the time of day is enough, and a level is seen by its colour."""

    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        return f"{CLEAR_LINE}{super().format(record)}"

    def _head(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<7}"
        colour = _COLOURS.get(record.levelname) if self._is_coloured else None
        return f"{moment} \x1b[{colour}m{level}\x1b[0m" if colour else f"{moment} {level}"


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": event_of(record),
            "logger": record.name,
            "message": record.getMessage(),
            **facts_of(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _printable(text: str) -> str:
    """*text* with all control characters except tabs escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``, which a progress bar replaces temporarily.

    Args:
        formatter: also for other handlers, such as that of the boot log.
        shown: formats what this handler writes.
    """

    def __init__(self, formatter: logging.Formatter, shown: logging.Formatter) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return self._shown.format(record)


def _time(record: logging.LogRecord) -> str:
    return f"{iso_time(record.created)}.{int(record.msecs):03d}+00:00"


_ENGINE_LEVELS: Final = {"debug": logging.DEBUG, "error": logging.ERROR}
"""Of llama-server's lines, by LOG_LEVEL: its INFO is several lines per request."""


def configure(settings: LogSettings, environ: Mapping[str, str]) -> None:
    """Send the records that LOG_LEVEL includes to standard error.

    Other handlers get all records from INFO on, so that the boot log explains a crash at any level.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    formatter = _Json() if settings.log_format == "json" else _Text()
    shown = formatter
    if settings.log_format == "text" and moves_cursor(sys.stderr, environ):
        shown = _TerminalText(is_coloured=has_colours(sys.stderr, environ))
    handler = _ToStderr(formatter, shown)
    handler.setLevel(level)
    logging.basicConfig(level=min(level, logging.INFO), handlers=[handler], force=True)
    engine = logging.getLogger("llama-server")  # noqa: TID251  # lines of another program
    engine.setLevel(_ENGINE_LEVELS.get(settings.log_level, logging.WARNING))
