"""Log events: each has its name and its facts at the call site.

    _log: Final = EventLog(__name__)
    _log.info("engine_ready", "The model is ready after {seconds:.1f} s", seconds=4.2)

The name and the facts are for programs, and stay (docs/logs.md). The sentence is for people, and
may be reworded. Both travel in an ordinary record of ``logging``, as those of libraries do, and
``cli/logs.py`` renders it as text or as JSON. No fact may be a secret.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Final

Fact = str | int | float | Sequence[str] | None
Facts = Mapping[str, str | int | float | list[str] | None]

OTHER: Final = "other"
"""The event of a record that is not ours, such as one of asyncio's."""


class EventLog:
    """Logs the events of one module.

    An event's text is a template, filled with its facts by ``str.format``. Only the fact
    ``lines`` is no part of the sentence: as text, its items follow below, one a line.

    Args:
        module: its name, by which ``logging`` knows the logger.
    """

    def __init__(self, module: str) -> None:
        self._logger = logging.getLogger(module)  # noqa: TID251 - the one place for it

    def info(self, event: str, text: str, /, **facts: Fact) -> None:
        """Something has happened."""
        self._log(logging.INFO, event, text, facts)

    def warning(self, event: str, text: str, /, **facts: Fact) -> None:
        """Something is not as it should be."""
        self._log(logging.WARNING, event, text, facts)

    def error(
        self,
        event: str,
        text: str,
        /,
        *,
        exc_info: BaseException | bool | None = None,
        **facts: Fact,
    ) -> None:
        """Somebody has to do something. *exc_info*: as ``logging`` has it, for a traceback."""
        self._log(logging.ERROR, event, text, facts, exc_info)

    def _log(
        self,
        level: int,
        event: str,
        text: str,
        facts: Mapping[str, Fact],
        exc_info: BaseException | bool | None = None,
    ) -> None:
        safe = {name: _json_safe(fact) for name, fact in facts.items()}
        self._logger.log(
            level,
            _Sentence(text, safe),
            exc_info=exc_info,
            extra={"event": event, "facts": safe},
            stacklevel=3,
        )


class _Sentence:
    """A message that is made when a handler wants it, so that a mistake in it stays in there."""

    __slots__ = ("_facts", "_text")

    def __init__(self, text: str, facts: Facts) -> None:
        self._text = text
        self._facts = facts

    def __str__(self) -> str:
        return self._text.format_map({name: _shown(fact) for name, fact in self._facts.items()})


def event_of(record: logging.LogRecord) -> str:
    """The name of the event that *record* is."""
    return str(getattr(record, "event", OTHER))


def facts_of(record: logging.LogRecord) -> Facts:
    """The facts of *record*, fit for JSON; none when it is not ours."""
    facts: Facts = getattr(record, "facts", {})
    return facts


def _json_safe(fact: Fact) -> str | int | float | list[str] | None:
    match fact:
        case str():
            # A path may have bytes that are no UTF-8: half a surrogate pair, to Python.
            return fact.encode("utf-8", "backslashreplace").decode()
        case float() if not math.isfinite(fact):
            return str(fact)
        case None | int() | float():
            return fact
    return [str(_json_safe(item)) for item in fact]


def _shown(fact: str | int | float | list[str] | None) -> str | int | float | None:
    return " ".join(fact) if isinstance(fact, list) else fact
