"""Reported by the gateway to the supervisor: the requests that need the engine.

The other direction of the channel is ``EngineStatus``. Both are a line of JSON with a state,
not with a change, so that a line that is lost or late does no harm.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

GREETING: Final = b"\n"
"""The first line: connections are accepted now."""


@dataclass(frozen=True, slots=True)
class Activity:
    """A gateway at one moment. The two counters start at 0 with the gateway and only rise."""

    acknowledged_revision: int = 0
    """The revision of the last ``EngineStatus`` that it has received."""
    busy: int = 0
    """Requests that are being read, queued or processed."""
    running: int = 0
    """Of these, the requests that hold a slot of the engine."""
    responses: int = 0
    """Counter: requests that the engine has responded to."""
    data_ticks: int = 0
    """Counter: checks at which the engine had sent something since the last one."""
    engine_requested: bool = False
    """A request has arrived while the engine is asleep."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Activity:
        """Undo ``to_line``."""
        return cls(**json.loads(line))
