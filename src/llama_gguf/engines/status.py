"""The engine's status as one value, and what follows from it.

The supervisor makes an ``EngineStatus`` from its state machine; a gateway without a
supervisor makes it from its probe. Health, admission and metrics are views of it, so that no
request to a health path causes a request to the engine.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_gguf.values import Value, replace


class ChildState(enum.StrEnum):
    """Of llama-server; of the gateway's process too, which is never asleep or unreachable."""

    STARTING = "starting"  # no process runs yet
    LOADING = "loading"  # the process runs, and does not serve yet
    READY = "ready"
    DRAINING = "draining"  # it is being replaced: it serves what it has, and gets nothing new
    ASLEEP = "asleep"  # no request needs it: it holds no GPU memory, and wakes at the next request
    BACKOFF = "backoff"  # it died, or is being ended; the next try is due later
    FAILED = "failed"  # it was given up
    STOPPING = "stopping"
    STOPPED = "stopped"
    UNREACHABLE = "unreachable"  # a gateway without a supervisor cannot connect to it


_S = ChildState

MAY_COME: Final = frozenset(
    {_S.STARTING, _S.LOADING, _S.DRAINING, _S.ASLEEP, _S.BACKOFF, _S.UNREACHABLE}
)
"""States in which waiting makes sense."""

HEALTH_STATUS: Final[Mapping[ChildState, int]] = {
    _S.STARTING: 204,
    _S.LOADING: 204,
    _S.READY: 200,
    _S.DRAINING: 200,  # the queue holds until its replacement is ready
    _S.ASLEEP: 200,
    _S.BACKOFF: 503,
    _S.FAILED: 503,
    _S.STOPPING: 503,
    _S.STOPPED: 503,
    _S.UNREACHABLE: 503,
}
"""Responses of ``HEALTH_MODE=ready``: RunPod reads 204 as initialising, 200 as healthy."""


_RANKS: Final = {
    state: rank
    for rank, state in enumerate(
        (
            *(_S.READY, _S.DRAINING, _S.LOADING, _S.STARTING, _S.ASLEEP),
            *(_S.BACKOFF, _S.UNREACHABLE, _S.STOPPING, _S.FAILED, _S.STOPPED),
        )
    )
}
"""The most able first."""


class EngineStatus(Value):
    """What is known of the engine.

    ``since`` is POSIX seconds of the last change of state; ``slots`` is None
    until the engine has reported it.
    """

    state: ChildState
    since: float
    replica: str = "0"
    """The replica's name for people and metrics. During its replacement, two engines have it."""
    address: str = ""
    """Where it listens, as of ``EngineAddress.key``; empty = as the settings say."""
    is_silent: bool = False
    """It serves, and did not respond to the last probe."""
    is_removed: bool = False
    """It does not come back at this address: the gateway may forget it."""
    slots: int | None = None
    model: str = ""
    detail: str = ""
    """One sentence for people: the reason of the state."""
    progress: float | None = None
    """Of a load or a download, from 0 to 1; None if unknown."""
    wakes_itself: bool = False
    """It fell asleep by itself, and the next request that is sent to it wakes it."""
    load_seconds: float | None = None
    """The duration of the last load."""
    last_exit: str = ""
    """Why the engine last ended, in words; empty if it never has."""
    last_advice: str = ""
    """What to do about ``last_exit``."""
    restarts: Mapping[str, int] = {}
    """Since our start, by reason."""
    missing_devices: Sequence[str] = ()
    """Those that its latest start lacked, and an earlier one had."""
    facts: Mapping[str, str | int] = {}
    """About the model's file and the engine, for people; unknown facts are missing."""
    request_tokens: int | None = None
    """The context of one request; None until the engine has reported it."""
    model_list: Mapping[str, Any] = {}
    """Its response to ``GET /v1/models`` when it was last ready; empty until then."""
    prompt_cache: Mapping[str, Any] = {}
    """Of saved prompts, as of ``supervisor/prompts.py``; empty unless PROMPT_CACHE is on."""
    revision: int = 0
    """Rises with each change that the supervisor sends; the gateway acknowledges it."""

    @property
    def serves(self) -> bool:
        """Whether requests may be sent to it now."""
        return self.state is _S.READY or (self.state is _S.ASLEEP and self.wakes_itself)

    def moved(self, state: ChildState, now: float, *, detail: str = "") -> EngineStatus:
        """The status after a change at *now*; the same state keeps its ``since``."""
        since = self.since if state is self.state else now
        return replace(
            self,
            state=state,
            since=since,
            detail=detail,
            progress=None,
            wakes_itself=False,
            is_silent=False,
        )

    @classmethod
    def of_all(cls, statuses: Sequence[EngineStatus]) -> EngineStatus:
        """A summary of one or more: the most able decides, and numbers are added up."""
        if len(statuses) == 1:
            return statuses[0]
        best = min(statuses, key=lambda status: _RANKS[status.state])
        slots = [status.slots for status in statuses if status.serves and status.slots]
        tokens = [status.request_tokens for status in statuses if status.request_tokens]
        restarts: dict[str, int] = {}
        for status in statuses:
            for reason, count in status.restarts.items():
                restarts[reason] = restarts.get(reason, 0) + count
        return replace(
            best,
            slots=sum(slots) or best.slots,
            request_tokens=min(tokens) if tokens else None,
            revision=max(status.revision for status in statuses),
            restarts=restarts,
            missing_devices=tuple(
                {device: None for status in statuses for device in status.missing_devices}
            ),
        )

    def to_line(self) -> bytes:
        """One line of JSON, as the supervisor sends it to the gateway."""
        return json.dumps(vars(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> EngineStatus:
        """Undo ``to_line``."""
        values = json.loads(line)
        return cls(
            **{
                **values,
                "state": ChildState(values["state"]),
                "missing_devices": tuple(values["missing_devices"]),
            }
        )
