"""The engines that requests are sent to, and the queue before them. So far there is one engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from llama_gguf.config.schema import DEFAULT_SLOTS, QueueSettings, TimeoutSettings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.engines.source import EngineSource
from llama_gguf.gateway.engine_tracker import EngineTracker
from llama_gguf.gateway.liveness import LivenessCheck
from llama_gguf.gateway.pool import IDLE_SECONDS, ConnectionPool
from llama_gguf.gateway.replica import Replica
from llama_gguf.net.clock import Clock
from llama_gguf.net.connector import Dial
from llama_gguf.scheduling.admission import Admission
from llama_gguf.scheduling.balancer import OneEngine
from llama_gguf.scheduling.crash_memory import CrashMemory
from llama_gguf.scheduling.fair_queue import Turns
from llama_gguf.scheduling.replay_order import ReplayOrder

SIDE_REQUESTS: Final = 4
"""At an engine at once that use no slot: llama-server has four HTTP threads more than slots."""
SIDE_REQUESTS_PER_KEY: Final = 2


class Fleet:
    """Of one gateway.

    Args:
        source: where the engines come from.
        queue: the limits on slots and queue.
        timeouts: of connections to an engine.
        loop: of the gateway.
        clock: of the gateway.
        dial_to: makes what connects to an engine.
        are_several: whether there are several keys, so that a part of the queue is reserved.
        turns_of: by a key's id, its turns in the queue.
    """

    def __init__(
        self,
        source: EngineSource,
        queue: QueueSettings,
        timeouts: TimeoutSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        dial_to: Callable[[EngineAddress], Dial],
        are_several: Callable[[], bool],
        turns_of: Callable[[str], Turns],
    ) -> None:
        self._max_requests = queue.max_concurrent_requests
        (address,) = source.addresses
        self.engine = EngineTracker(loop, clock.wall, self._on_engine_change)
        self.replica = Replica(
            address,
            self.engine,
            ConnectionPool(timeouts, loop, dial_to(address)),
            LivenessCheck(loop, self.engine, Probe(address).look),
        )
        self.replica.side_slots.total = SIDE_REQUESTS
        self.admission = Admission(
            OneEngine(self.replica.slots),
            queue_size=queue.max_queue_size,
            per_key=queue.max_concurrent_per_key,
            is_shared=are_several,
            turns_of=turns_of,
        )
        self.side_admission = Admission(
            OneEngine(self.replica.side_slots),
            queue_size=queue.max_queue_size,
            running_per_key=SIDE_REQUESTS_PER_KEY,
            is_shared=are_several,
        )
        """Of requests that use no slot."""
        self.replay_order = ReplayOrder()
        self.crash_memory = CrashMemory()

    @property
    def is_busy(self) -> bool:
        """Whether an engine works on a request that uses a slot."""
        return self.engine.is_ready and self.admission.running > 0

    def tick(self, now: float, *, is_late: bool) -> None:
        """Twice a second: old connections, and what is overdue unless the tick *is_late*."""
        pool = self.replica.pool
        pool.retire_idle(IDLE_SECONDS)
        self.crash_memory.forget(now)
        if not is_late:
            pool.cut_overdue()

    def _on_engine_change(self) -> None:
        """Slots come and go with the engine."""
        engine = self.engine
        if not engine.is_ready:
            self.replica.pool.retire_idle()
            for ticket in self.side_admission.waiting():
                ticket.on_refused(engine.unavailable())
        self.replica.slots.total = self._slots() if engine.is_ready else 0
        self.admission.grant()
        if not engine.may_come:
            for ticket in self.admission.waiting():
                ticket.on_refused(engine.unavailable())
        self.replica.liveness.on_engine_change()

    def _slots(self) -> int:
        return self._max_requests or self.engine.status.slots or DEFAULT_SLOTS
