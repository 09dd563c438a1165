"""A finding of `check`: its subject, a sentence, and whether it is a problem."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    OK = "ok"
    NOTE = "note"  # `serve` works, but the result may be unexpected
    WRONG = "wrong"  # `serve` would fail


@dataclass(frozen=True, slots=True)
class Result:
    subject: str
    text: str
    level: Level = Level.OK
