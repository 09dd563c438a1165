"""The replicas that requests are sent to, and the queue before them.

They come from the settings, from the supervisor's reports and from PEERS; each has its own
connections, slots and status. What others need to know of all of them together is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from llama_gguf.config.schema import DEFAULT_SLOTS, QueueSettings, TimeoutSettings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import GatewayError
from llama_gguf.gateway.engine_tracker import EngineTracker, unavailable
from llama_gguf.gateway.liveness import LivenessCheck
from llama_gguf.gateway.pool import IDLE_SECONDS, ConnectionPool
from llama_gguf.gateway.replica import Replica
from llama_gguf.net.clock import Clock
from llama_gguf.net.connector import Dial
from llama_gguf.scheduling.admission import Admission
from llama_gguf.scheduling.balancer import Balancer
from llama_gguf.scheduling.crash_memory import CrashMemory
from llama_gguf.scheduling.fair_queue import Turns
from llama_gguf.scheduling.replay_order import ReplayOrder

SIDE_REQUESTS: Final = 4
"""At an engine at once that use no slot: llama-server has four HTTP threads more than slots."""
SIDE_REQUESTS_PER_KEY: Final = 2


class Fleet:
    """Of one gateway.

    Args:
        queue: the limits on slots and queue.
        timeouts: of connections to an engine.
        loop: of the gateway.
        clock: of the gateway.
        dial_to: makes what connects to an engine.
        are_several: whether there are several keys, so that a part of the queue is reserved.
        turns_of: by a key's id, its turns in the queue.
        api_key: that engines expect.
    """

    def __init__(
        self,
        queue: QueueSettings,
        timeouts: TimeoutSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        dial_to: Callable[[EngineAddress], Dial],
        are_several: Callable[[], bool],
        turns_of: Callable[[str], Turns],
        api_key: str = "",
    ) -> None:
        self._max_requests = queue.max_concurrent_requests
        self._timeouts = timeouts
        self._loop = loop
        self._clock = clock
        self._dial_to = dial_to
        self._api_key = api_key
        self.replicas: dict[str, Replica] = {}
        """By ``EngineAddress.key``; those that are leaving too."""
        self.status = EngineStatus(ChildState.STARTING, since=clock.wall)
        """Of the only replica, or a summary of all."""
        self.is_ready = False
        """Whether requests may be sent to a replica now."""
        self.has_choice = False
        """Whether there are several replicas."""
        self.on_engine_requested: Callable[[], None] = _ignore
        """Called when a request arrives while a replica is asleep, and none is ready."""
        self._balancer: Balancer[Replica] = Balancer()
        self._side_balancer: Balancer[Replica] = Balancer()
        self.admission = Admission(
            self._balancer,
            queue_size=queue.max_queue_size,
            per_key=queue.max_concurrent_per_key,
            is_shared=are_several,
            turns_of=turns_of,
        )
        self.side_admission = Admission(
            self._side_balancer,
            queue_size=queue.max_queue_size,
            running_per_key=SIDE_REQUESTS_PER_KEY,
            is_shared=are_several,
        )
        """Of requests that use no slot."""
        self.replay_order = ReplayOrder()
        self.crash_memory = CrashMemory()

    # Replicas come and go -----------------------------------------------------------------------

    def add(self, address: EngineAddress, label: str = "0") -> Replica:
        """Use the engine at *address*, from its first status that serves on."""
        key = address.key
        replica = self.replicas.get(key)
        if replica is not None and not replica.is_leaving:
            return replica
        if replica is None:
            replica = self._make(address, label)
            self.replicas[key] = replica
        replica.is_leaving = False
        self._balancer.add(replica.slots)
        self._side_balancer.add(replica.side_slots)
        self._on_number_changed()
        self._on_replica_change(replica)
        return replica

    def _make(self, address: EngineAddress, label: str) -> Replica:
        def on_change() -> None:
            self._on_replica_change(replica)

        loop = self._loop
        tracker = EngineTracker(loop, self._clock.wall, on_change)
        replica = Replica(
            address,
            label,
            tracker,
            ConnectionPool(self._timeouts, loop, self._dial_to(address)),
            LivenessCheck(loop, tracker, Probe(address).look),
        )
        return replica

    def remove(self, key: str) -> None:
        """Send nothing more to a replica; it is forgotten once its last request is over."""
        replica = self.replicas.get(key)
        if replica is None or replica.is_leaving:
            return
        replica.is_leaving = True
        self._balancer.remove(replica.slots)
        self._side_balancer.remove(replica.side_slots)
        self._on_replica_change(replica)
        if replica.is_unused:
            self._forget(key)

    def _forget(self, key: str) -> None:
        self.replicas.pop(key).pool.retire_idle()
        self._on_number_changed()
        self._sum_up()

    def _on_number_changed(self) -> None:
        self.has_choice = len(self.replicas) > 1
        for replica in self.replicas.values():
            replica.tracker.label = replica.label if self.has_choice else ""

    def update(self, status: EngineStatus) -> None:
        """Take over what the supervisor reports of one of its engines."""
        key = status.address or next(iter(self.replicas), "")
        replica = self.replicas.get(key)
        if replica is None or replica.is_leaving:
            if status.is_removed:
                return
            address = EngineAddress.from_key(key, api_key=self._api_key)
            replica = self.add(address, status.replica)
        replica.label = status.replica
        self._on_number_changed()
        replica.tracker.is_supervised = True
        replica.tracker.update(status)
        if status.is_removed:
            self.remove(key)

    # What is asked of all of them ---------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether an engine works on a request that uses a slot."""
        return self.is_ready and self.admission.running > 0

    @property
    def may_come(self) -> bool:
        """Whether waiting for a replica makes sense."""
        replicas = [each for each in self.replicas.values() if not each.is_leaving]
        return not replicas or any(each.tracker.may_come for each in replicas)

    def require(self, *, may_wait: bool) -> None:
        """Decide on a request that has arrived while no replica is ready.

        Raises:
            ModelLoading, BackendUnavailable: it cannot wait.
        """
        for replica in self.replicas.values():
            if replica.tracker.status.state is ChildState.ASLEEP:
                self._loop.call_soon(self.on_engine_requested)  # when it is in the queue
                break
        if not (may_wait and self.may_come):
            raise self.unavailable()

    def unavailable(self) -> GatewayError:
        """Why a request cannot be sent to a replica now."""
        return unavailable(self.status.state)

    def tick(self, now: float, *, is_late: bool) -> None:
        """Twice a second: old connections, and what is overdue unless the tick *is_late*."""
        self.crash_memory.forget(now)
        for key, replica in tuple(self.replicas.items()):
            replica.pool.retire_idle(IDLE_SECONDS)
            if not is_late:
                replica.pool.cut_overdue()
            if replica.is_leaving and replica.is_unused:
                self._forget(key)

    # A connection was lost ------------------------------------------------------------------------

    def on_connection_lost(self, replica: Replica) -> None:
        """Send nothing to *replica* until it is known whether it lives, if there is another."""
        if not (self.has_choice and self._has_other(replica)) or replica.is_in_doubt:
            return

        def on_known() -> None:
            replica.is_in_doubt = False
            self._on_replica_change(replica)

        replica.is_in_doubt = True
        replica.liveness.wait(replica, on_known)
        self._on_replica_change(replica)

    def wait_to_replay(
        self, request: object, failed: Replica | None, on_done: Callable[[], None]
    ) -> None:
        """Call *on_done*, later, when *request* can be sent again that *failed* has lost."""
        if failed is None or self._has_other(failed):
            self._loop.call_soon(on_done)
        else:
            failed.liveness.wait(request, on_done)

    def _has_other(self, replica: Replica) -> bool:
        return any(each is not replica and each.is_usable for each in self.replicas.values())

    # A replica has changed ----------------------------------------------------------------------

    def _on_replica_change(self, replica: Replica) -> None:
        """Slots come and go with the engine."""
        is_usable = replica.is_usable
        if not is_usable:
            replica.pool.retire_idle()
        replica.slots.total = self._slots(replica) if is_usable else 0
        replica.side_slots.total = SIDE_REQUESTS if is_usable else 0
        self._balancer.changed(replica.slots)
        self._side_balancer.changed(replica.side_slots)
        self._sum_up()
        if not self.is_ready:
            for ticket in self.side_admission.waiting():
                ticket.on_refused(self.unavailable())
        else:
            self.side_admission.grant()
        self.admission.grant()
        if not self.may_come:
            for waiting in self.admission.waiting():
                waiting.on_refused(self.unavailable())
        replica.liveness.on_engine_change()

    def _slots(self, replica: Replica) -> int:
        return self._max_requests or replica.tracker.status.slots or DEFAULT_SLOTS

    def _sum_up(self) -> None:
        replicas = [each for each in self.replicas.values() if not each.is_leaving]
        self.is_ready = any(each.tracker.is_ready for each in replicas)
        if replicas:
            self.status = EngineStatus.of_all([each.tracker.status for each in replicas])


def _ignore() -> None:
    """A gateway on its own cannot start an engine."""
