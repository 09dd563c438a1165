"""One engine that requests can be sent to."""

from __future__ import annotations

import math
from collections import Counter

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.mixed import Served
from llama_gguf.gateway.engine_tracker import EngineTracker
from llama_gguf.gateway.liveness import LivenessCheck
from llama_gguf.gateway.pool import ConnectionPool
from llama_gguf.scheduling.balancer import Slots
from llama_gguf.scheduling.standing import Standing


class Replica:
    """What the gateway knows and holds of one engine.

    Args:
        address: where it listens.
        label: its name for people and metrics.
        tracker: its status.
        pool: the connections to it.
        liveness: whether it lives, after a connection was lost.
    """

    def __init__(
        self,
        address: EngineAddress,
        label: str,
        tracker: EngineTracker,
        pool: ConnectionPool,
        liveness: LivenessCheck,
    ) -> None:
        self.address = address
        self.label = label
        self.header_lines = address.header_lines()
        """The lines in the head of a request that depend on the engine."""
        self.tracker = tracker
        self.pool = pool
        self.liveness = liveness
        self.slots = Slots(self)
        self.side_slots = Slots(self)
        """For requests that use no slot: they take threads and time of the engine all the same."""
        self.owners: set[str] | None = None
        """The ids of the keys whose requests were sent to it since the last report; None unless the
        supervisor keeps its prompts."""
        self.is_leaving = False
        """It finishes what it has, and is then forgotten."""
        self.standing = Standing()
        """What its traffic shows."""
        self.mismatch = ""
        """How it differs from the model that is served, in words; it gets no requests then."""
        self.responses = 0
        """Counter: requests that it has responded to."""
        self.errors = 0
        """Counter: of these, with a status from 500 on."""
        self.refusals = 0
        """Counter: requests that it has refused, and that were sent to another replica."""
        self.ejections: Counter[str] = Counter(connections_lost=0, errors=0)
        """By reason."""
        self.is_gateway = False
        """It is another llama-gguf."""
        self.was_ready = False
        """At the last change."""
        self.unreachable_since = math.inf
        """On the gateway's clock, until its requests have been given to others."""

    @property
    def served(self) -> Served:
        """The model and the context that it reports."""
        return Served(self.tracker.status.model, self.tracker.status.request_tokens)

    @property
    def is_usable(self) -> bool:
        """Whether requests may be sent to it now."""
        return self.is_candidate and self.standing.limit(1) > 0

    @property
    def is_candidate(self) -> bool:
        """Whether it is ready, and serves what is to be served."""
        return self.tracker.is_ready and not self.is_leaving and not self.mismatch

    @property
    def good_responses(self) -> int:
        """Those with a lower status than 500, less the others."""
        return self.responses - 2 * self.errors

    @property
    def is_unused(self) -> bool:
        """Whether it works on no request."""
        return not (self.slots.in_use or self.side_slots.in_use)

    def __repr__(self) -> str:
        return f"<Replica {self.address!r} {self.tracker.status.state}>"
