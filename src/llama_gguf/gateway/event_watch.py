"""Notes in the history what explains a change of the charts: restarts, crashes, reloads.

It compares states every few seconds, so that no other part has to report anything to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from llama_gguf.engines.status import EngineStatus
from llama_gguf.gateway.fleet import Fleet
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.timeseries import History


class EventWatch:
    """Of one gateway.

    Args:
        metrics: that count reloads.
        fleet: whose replicas it watches.
    """

    def __init__(self, metrics: Metrics, fleet: Fleet) -> None:
        self._metrics = metrics
        self._fleet = fleet
        self._statuses: Mapping[str, EngineStatus] = {}
        """By the replica's key, as at the last look."""
        self._reloads: Mapping[str, int] | None = None

    def look(self, history: History, now: float) -> None:
        """Note what has changed since the last look; the first one notes the start."""
        reloads = {str(result): count for result, count in self._metrics.keys_reload.items()}
        if self._reloads is None:
            history.note("start", "The gateway started", now)
        elif reloads["failure"] > self._reloads["failure"]:
            history.note("reload", "The keys could not be reloaded", now)
        elif reloads != self._reloads:
            history.note("reload", "The keys were reloaded", now)
        self._reloads = reloads
        statuses = {key: each.tracker.status for key, each in self._fleet.replicas.items()}
        for key, status in statuses.items():
            if key in self._statuses:
                self._compare(history, self._statuses[key], status, now)
        self._statuses = statuses

    def _compare(
        self, history: History, known: EngineStatus, status: EngineStatus, now: float
    ) -> None:
        prefix = f"Replica {status.replica}: " if self._fleet.has_choice else ""
        risen = [r for r, count in status.restarts.items() if count > known.restarts.get(r, 0)]
        # The same death twice is an event twice.
        if status.last_exit and (risen or status.last_exit != known.last_exit):
            history.note("crash", f"{prefix}{status.last_exit}", now)
        elif risen:
            history.note("restart", f"{prefix}llama-server restarts: {', '.join(risen)}", now)
