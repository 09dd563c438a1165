"""The engine's status as one value, and what follows from it.

The supervisor makes an ``EngineStatus`` from its state machine, a gateway on its
own from its probe. Health, admission and metrics are views of it: no request to
a health path ever has to ask the engine.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final


class EngineState(enum.StrEnum):
    STARTING = "starting"  # nothing runs yet
    LOADING = "loading"  # the process runs, and does not serve yet
    READY = "ready"
    ASLEEP = (
        "asleep"  # nobody asked for it in a while: it holds no GPU memory, and comes when asked
    )
    BACKOFF = "backoff"  # it died, or is being ended; the next try is due later
    FAILED = "failed"  # it was given up
    STOPPING = "stopping"
    STOPPED = "stopped"
    UNREACHABLE = "unreachable"  # a gateway on its own cannot connect to it


_S = EngineState

MAY_COME: Final = frozenset({_S.STARTING, _S.LOADING, _S.ASLEEP, _S.BACKOFF, _S.UNREACHABLE})
"""States in which waiting makes sense."""

HEALTH_STATUS: Final[Mapping[EngineState, int]] = {
    _S.STARTING: 204,
    _S.LOADING: 204,
    _S.READY: 200,
    _S.ASLEEP: 200,
    _S.BACKOFF: 503,
    _S.FAILED: 503,
    _S.STOPPING: 503,
    _S.STOPPED: 503,
    _S.UNREACHABLE: 503,
}
"""What ``HEALTH_MODE=ready`` answers: RunPod reads 204 as initialising, 200 as healthy."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What is known of the engine.

    ``since`` is POSIX seconds of the last change of state; ``slots`` is None
    until the engine has told.
    """

    state: EngineState
    since: float
    slots: int | None = None
    model: str = ""
    detail: str = ""
    """One plain sentence for people: why it is so."""
    progress: float | None = None
    """Of a load or a download, from 0 to 1; None where nobody can tell."""
    wakes_itself: bool = False
    """It is asleep by its own choice: what is sent to it wakes it."""
    load_seconds: float | None = None
    """What the last load took."""
    last_exit: str = ""
    """Why the engine ended last, in plain words; empty while it never has."""
    restarts: Mapping[str, int] = field(default_factory=dict)
    """Since our start, by reason."""
    facts: Mapping[str, str | int] = field(default_factory=dict)
    """Of the model's file and the engine, for people; what nobody knows is missing."""
    revision: int = 0
    """Rises with each change that the supervisor tells; the gateway says which it has heard."""

    @property
    def serves(self) -> bool:
        """Whether requests may be sent to it now."""
        return self.state is _S.READY or (self.state is _S.ASLEEP and self.wakes_itself)

    def moved(self, state: EngineState, now: float, *, detail: str = "") -> EngineStatus:
        """The status after a change at *now*; the same state keeps its ``since``."""
        since = self.since if state is self.state else now
        return replace(
            self, state=state, since=since, detail=detail, progress=None, wakes_itself=False
        )

    def to_line(self) -> bytes:
        """One line of JSON, as the supervisor tells the gateway."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> EngineStatus:
        """Undo ``to_line``."""
        values = json.loads(line)
        return cls(**{**values, "state": EngineState(values["state"])})
