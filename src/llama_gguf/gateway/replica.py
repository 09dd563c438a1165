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
        tracker: its status.
        pool: the connections to it.
        liveness: whether it lives, after a connection was lost.
    """

    def __init__(
        self,
        address: EngineAddress,
        tracker: EngineTracker,
        pool: ConnectionPool,
        liveness: LivenessCheck,
    ) -> None:
        self.address = address
        self.header_lines = address.header_lines()
        """The lines in the head of a request that depend on the engine."""
        self.tracker = tracker
        self.pool = pool
        self.liveness = liveness
        self.slots = Slots(self)
        self.side_slots = Slots(self)
        """For requests that use no slot: they take threads and time of the engine all the same."""

    def __repr__(self) -> str:
        return f"<Replica {self.address!r} {self.tracker.status.state}>"
