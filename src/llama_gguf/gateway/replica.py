"""One engine that requests can be sent to."""

from __future__ import annotations

from llama_gguf.engines.address import EngineAddress
from llama_gguf.gateway.engine_tracker import EngineTracker
from llama_gguf.gateway.liveness import LivenessCheck
from llama_gguf.gateway.pool import ConnectionPool
from llama_gguf.scheduling.balancer import Slots


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
        self.is_leaving = False
        """It finishes what it has, and is then forgotten."""
        self.is_in_doubt = False
        """A connection to it was lost, and it is not known yet whether it lives."""
        self.responses = 0
        """Counter: requests that it has responded to."""

    @property
    def is_usable(self) -> bool:
        """Whether requests may be sent to it now."""
        return self.tracker.is_ready and not self.is_leaving and not self.is_in_doubt

    @property
    def is_unused(self) -> bool:
        """Whether it works on no request."""
        return not (self.slots.in_use or self.side_slots.in_use)

    def __repr__(self) -> str:
        return f"<Replica {self.address!r} {self.tracker.status.state}>"
