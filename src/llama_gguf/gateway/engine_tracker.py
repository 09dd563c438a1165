"""What the gateway knows of the engine, and whether requests may be sent to it or wait for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from llama_gguf.engines.status import MAY_COME, ChildState, EngineStatus
from llama_gguf.errors import BackendUnavailable, GatewayError, ModelLoading
from llama_gguf.events import EventLog
from llama_gguf.wall_clock import wall_now

_log: Final = EventLog(__name__)

MODEL_LOADING_RETRY_SECONDS: Final = 5.0
BACKEND_RETRY_SECONDS: Final = 2.0
NEWS_SECONDS: Final = 0.5
"""Within which a supervisor reports that the engine has died."""
_ENDED: Final = MAY_COME - {ChildState.ASLEEP, ChildState.DRAINING} | {ChildState.FAILED}
"""States that follow the death of an engine that served."""


_LOADS: Final = frozenset(
    {ChildState.STARTING, ChildState.LOADING, ChildState.DRAINING, ChildState.ASLEEP}
)
"""States on the way to a loaded model."""


class EngineTracker:
    """Of one engine.

    Args:
        loop: of the gateway.
        since: POSIX seconds, of the gateway's start.
        on_change: called after each change of ``status`` or ``is_ready``.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, since: float, on_change: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._on_change = on_change
        self.status = EngineStatus(ChildState.STARTING, since=since)
        self.is_ready = False
        """Whether requests may be sent to it now."""
        self.responded_at = -math.inf
        """When it was last seen to respond, on the gateway's clock."""
        self.deaths = 0
        """How often it ended, or could not be reached any more, while it served."""
        self.died_at = -math.inf
        """The last time, on the loop's clock."""
        self.explained_deaths = 0
        """Up to which of its deaths it is known which request it was."""
        self.is_supervised = False
        """Whether a supervisor reports its status."""
        self.label = ""
        """Of the replica, for log lines; empty if it is the only one."""

    def update(self, status: EngineStatus) -> None:
        """Take over what the supervisor, or the probe, reports."""
        if status.state is not self.status.state:
            self._log_state(status)
        if self.status.serves and status.state in _ENDED:
            self.deaths += 1
            self.died_at = self._loop.time()
        self.status = status
        is_one_of_several = bool(self.label)
        self.is_ready = status.serves and not (status.is_silent and is_one_of_several)
        self._on_change()

    def _log_state(self, status: EngineStatus) -> None:
        if self.label:
            _log.info(
                "replica_state",
                "Replica {replica}: {state} ({detail})"
                if status.detail
                else "Replica {replica}: {state}",
                replica=self.label,
                state=status.state,
                detail=status.detail,
            )
        else:
            _log.info(
                "engine_state",
                "Engine state: {state} ({detail})" if status.detail else "Engine state: {state}",
                state=status.state,
                detail=status.detail,
            )

    def on_connect_failed(self) -> None:
        """It did not accept a connection, so no more requests are sent to it until there is news.

        It is dying, most likely, and its supervisor reports that in a moment, or reports nothing.
        Without a supervisor, the next probe finds out.
        """
        if not self.is_ready:
            return
        if self.is_supervised:
            self.is_ready = False
            self._on_change()
            self._loop.call_later(NEWS_SECONDS, lambda: self.update(self.status))
        else:
            self.update(self.status.moved(ChildState.UNREACHABLE, wall_now()))

    @property
    def may_come(self) -> bool:
        """Whether waiting for it makes sense."""
        return self.status.serves or self.status.state in MAY_COME


def unavailable(state: ChildState) -> GatewayError:
    """Why a request cannot be sent to an engine in *state*."""
    if state in _LOADS:
        return ModelLoading(
            "The model is still loading; try again later.",
            retry_after=MODEL_LOADING_RETRY_SECONDS,
        )
    return BackendUnavailable("The engine is not available.", retry_after=BACKEND_RETRY_SECONDS)
