"""Reported by the gateway to the supervisor: the requests that need the engine.

The other direction of the channel is ``EngineStatus``. Both are a line of JSON, and
both say how it is and not what has changed, so that a line that is lost or comes
late does no harm.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

GREETING: Final = b"\n"
"""The first line: connections are accepted now."""


@dataclass(frozen=True, slots=True)
class Activity:
    """A gateway at one moment. The two counters only ever rise, and begin at 0 with it."""

    heard: int = 0
    """The revision of the ``EngineStatus`` that it acts on."""
    busy: int = 0
    """Requests that are coming in, waiting or being answered."""
    running: int = 0
    """Of these, the ones that are at the engine and hold a slot."""
    answered: int = 0
    """Counter: requests that the engine has answered."""
    moves: int = 0
    """Counter: looks at which something new had come back from the engine."""
    wants_engine: bool = False
    """A request has come for an engine that is asleep."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Activity:
        """Undo ``to_line``."""
        return cls(**json.loads(line))
