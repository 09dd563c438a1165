"""What a request has been through that an engine has failed, and that is sent again."""

from __future__ import annotations

import math
from typing import Final

from llama_gguf.gateway.attempt import Attempt
from llama_gguf.gateway.replica import Replica

MARGIN_SECONDS: Final = 1.0


class Replay:
    """Of one request, from its first failure on."""

    def __init__(self) -> None:
        self.queue_deadline = math.inf
        """Until when it may wait for the next engine, on the gateway's clock."""
        self.deaths = 0
        """Engines that are known to have died while they worked on the request."""
        self._ran_for = 0.0
        """Seconds that it had run when an engine failed it last."""
        self._failed: Attempt | None = None
        """The last attempt that reached an engine."""
        self.replica: Replica | None = None
        """The one that failed it last."""

    def on_failed(self, attempt: Attempt, *, ran_for: float) -> None:
        """*attempt* has failed after *ran_for* seconds at an engine."""
        self._failed = attempt
        self.replica = attempt.replica
        self._ran_for = ran_for

    def on_sent(self) -> None:
        """The request is sent again: whether the last engine died is known by now.

        The report of a death arrives after the loss of the connection, and before the next engine.
        """
        failed, self._failed = self._failed, None
        if failed is not None and failed.replica.tracker.deaths > failed.deaths_before:
            self.deaths += 1

    def turn_ends_at(self, forwarded_at: float, *, waiting: int) -> float:
        """Until when it may hold up the *waiting* others.

        Later it is unlikely to end the engine. It is earlier if the last of them could otherwise
        not be sent before its time to wait is over.
        """
        left = self.queue_deadline - forwarded_at
        return forwarded_at + min(self._ran_for + MARGIN_SECONDS, left / (waiting + 1))
