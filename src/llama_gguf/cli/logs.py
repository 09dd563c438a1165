"""Logging: to standard error, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from llama_gguf.events import event_of, facts_of

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Text(logging.Formatter):
    """One line per record; its further lines follow, indented.

    Therefore no content of a fact or a library's message can forge another record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        # The logger's name if it is not ours, such as llama-server's.
        name = "" if record.name.startswith("llama_gguf") else f"{record.name}: "
        head = f"{_time(record)} {record.levelname:<7} {name}{_printable(record.message)}"
        lines = facts_of(record).get("lines")
        return "\n    ".join([head, *map(_printable, lines if isinstance(lines, list) else ())])

    def formatException(self, ei: _ExcInfo) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {_printable(line)}" for line in lines)


class _Json(logging.Formatter):
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
    return "".join(
        c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text
    )


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``, which a progress bar replaces temporarily."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def configure(log_format: str) -> None:
    """Send all records at INFO and above to standard error."""
    handler = _ToStderr()
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
