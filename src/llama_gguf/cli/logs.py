"""Logging: to standard error, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Whose line it is, where it is not ours: llama-server's.
        name = "" if record.name.startswith("llama_gguf") else f"{record.name}: "
        return f"{_time(record)} {record.levelname:<7} {name}{super().format(record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": super().format(record),
        }
        return json.dumps(facts)


class _ToStderr(logging.StreamHandler[TextIO]):
    """To what is standard error at that moment: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def configure(log_format: str) -> None:
    """Send everything at INFO and above to standard error."""
    handler = _ToStderr()
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
