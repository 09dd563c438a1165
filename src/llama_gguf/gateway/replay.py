"""What a request has been through that an engine has failed, and that is sent again."""

from __future__ import annotations

import math
from typing import Final

from llama_gguf.gateway.attempt import Attempt
from llama_gguf.gateway.replica import Replica

MARGIN_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 10.0
"""After a request has failed at an engine that died: within them, the death is known."""


class Replay:
    """Of one request, from its first failure on."""

    def __init__(self) -> None:
        self.queue_deadline = math.inf
        """Until when it may wait for the next engine, on the gateway's clock."""
        self._deaths = 0
        self._failed_at = 0.0
        self._ran_for = 0.0
        """Seconds that it had run when an engine failed it last."""
        self._failed: Attempt | None = None
        """The last attempt that reached an engine."""
        self.replica: Replica | None = None
        """The one that failed it last."""

    def on_failed(self, attempt: Attempt, now: float, *, ran_for: float) -> None:
        """*attempt* has failed at *now*, after *ran_for* seconds at an engine."""
        self.deaths()  # counts the death before, if it is known by now
        self._failed = attempt
        self._failed_at = now
        self.replica = attempt.replica
        self._ran_for = ran_for

    def on_sent(self, replica: Replica) -> None:
        """The request is sent again, to *replica*.

        If that has failed it, whether it died is known by now: the report of a death arrives after
        the loss of the connection, and before the next engine at the same address.
        """
        if replica is self.replica:
            self.deaths()
            self._failed = None

    def deaths(self) -> int:
        """Engines that are known to have died while they worked on the request."""
        failed = self._failed
        if failed is not None:
            tracker = failed.replica.tracker
            is_soon = tracker.died_at < self._failed_at + REPORT_SECONDS
            if tracker.deaths > failed.deaths_before and is_soon:
                self._deaths += 1
                self._failed = None
        return self._deaths

    def turn_ends_at(self, forwarded_at: float, *, waiting: int) -> float:
        """Until when it may hold up the *waiting* others.

        Later it is unlikely to end the engine. It is earlier if the last of them could otherwise
        not be sent before its time to wait is over.
        """
        left = self.queue_deadline - forwarded_at
        return forwarded_at + min(self._ran_for + MARGIN_SECONDS, left / (waiting + 1))
