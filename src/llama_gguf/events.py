"""Log events: each has its name and its facts at the call site.

    _log: Final = EventLog(__name__)
    _log.info("engine_ready", "The model is ready after {seconds:.1f} s", seconds=4.2)

The name and the facts are for programs, and stable (docs/logs.md). The sentence is for people, and
may be reworded. Both are in an ordinary ``logging`` record, like those of libraries, which
``cli/log_output.py`` renders as text or as JSON. No fact may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Final

from llama_gguf.stand_ins import stand_ins

with stand_ins({"traceback": {}}):  # `logging` uses it to show exceptions
    import logging

Fact = str | int | float | Sequence[str] | None
Facts = Mapping[str, str | int | float | list[str] | None]

OTHER: Final = "other"
"""The event of a record that another library has logged, such as asyncio."""


replica: Final[ContextVar[str]] = ContextVar("replica", default="")
"""The replica that the running task manages, where there are several: a fact of all its events."""


class EventLog:
    """Logs the events of one module.

    An event's text is a template, filled with its facts by ``str.format``. Only the fact
    ``lines`` is not part of the sentence: text logs show its items below it, one per line.

    Args:
        module: its name, which is also the logger's name.
    """

    def __init__(self, module: str) -> None:
        self._logger = logging.getLogger(module)  # noqa: TID251 - the one place for it

    def info(self, event: str, text: str, /, **facts: Fact) -> None:
        """Log normal operation."""
        self._log(logging.INFO, event, text, facts)

    def warning(self, event: str, text: str, /, **facts: Fact) -> None:
        """Log a fault that needs no action, or not yet."""
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
        """Log a fault that needs action. *exc_info* adds a traceback, as in ``logging``."""
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
        if label := replica.get():
            safe["replica"] = label
            text = f"Replica {{replica}}: {text}"
        self._logger.log(
            level,
            _Sentence(text, safe),
            exc_info=exc_info,
            extra={"event": event, "facts": safe},
            stacklevel=3,
        )


class _Sentence:
    """A message that is formatted by the handler, whose ``handleError`` reports a bad template.

    Formatted earlier, an error in the template would be raised in the code that logs.
    """

    __slots__ = ("_facts", "_text")

    def __init__(self, text: str, facts: Facts) -> None:
        self._text = text
        self._facts = facts

    def __str__(self) -> str:
        return self._text.format_map({name: _shown(fact) for name, fact in self._facts.items()})


def event_of(record: logging.LogRecord) -> str:
    """The event's name in *record*; ``OTHER`` for a library's record."""
    return str(getattr(record, "event", OTHER))


def facts_of(record: logging.LogRecord) -> Facts:
    """The facts in *record*, as JSON-safe values; empty for a library's record."""
    facts: Facts = getattr(record, "facts", {})
    return facts


def _json_safe(fact: Fact) -> str | int | float | list[str] | None:
    match fact:
        case str():
            # Bytes of a path that are not UTF-8 are lone surrogates in Python, which JSON rejects.
            return fact.encode("utf-8", "backslashreplace").decode()
        case float() if not math.isfinite(fact):
            return str(fact)
        case None | int() | float():
            return fact
    return [str(_json_safe(item)) for item in fact]


def _shown(fact: str | int | float | list[str] | None) -> str | int | float | None:
    return " ".join(fact) if isinstance(fact, list) else fact
