"""The replicas that requests are sent to, and the queue before them.

They come from the settings, from the supervisor's reports and from PEERS; each has its own
connections, slots and status. What others need to know of all of them together is here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from llama_gguf.config.schema import DEFAULT_SLOTS, QueueSettings, TimeoutSettings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.mixed import Candidate, Served, decisive, difference
from llama_gguf.engines.probe import Probe
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import GatewayError, QueueFull
from llama_gguf.events import EventLog
from llama_gguf.gateway.engine_tracker import EngineTracker, unavailable
from llama_gguf.gateway.liveness import LivenessCheck
from llama_gguf.gateway.pool import ConnectionPool
from llama_gguf.gateway.replica import Replica
from llama_gguf.net.clock import Clock
from llama_gguf.net.connector import Dial
from llama_gguf.scheduling.admission import Admission
from llama_gguf.scheduling.balancer import Balancer
from llama_gguf.scheduling.crash_memory import CrashMemory
from llama_gguf.scheduling.fair_queue import Turns
from llama_gguf.scheduling.replay_order import ReplayOrder
from llama_gguf.scheduling.standing import NO_LIMIT, State
from llama_gguf.values import replace

if TYPE_CHECKING:
    from llama_gguf.engines.roster import Roster

_log: Final = EventLog(__name__)

SIDE_REQUESTS: Final = 4
"""At an engine at once that use no slot: llama-server has four HTTP threads more than slots."""
SIDE_REQUESTS_PER_KEY: Final = 2
DEFAULT_BUSY_SECONDS: Final = 1.0
"""After a refusal without Retry-After."""
SILENT_SECONDS: Final = 5.0
"""After an unreachable replica's last probe: then its requests go to others."""
MAX_BUSY_SECONDS: Final = 5.0
"""However long a peer asks to wait: it may have room sooner."""
_REASONS: Final = {
    "connections_lost": "connections to it are lost",
    "errors": "it responds with errors to everything",
}


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
        probe_of: makes what probes an engine.
        api_key: that engines expect.
        model_name: MODEL_NAME.
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
        probe_of: Callable[[EngineAddress], Probe] = Probe,
        api_key: str = "",
        model_name: str = "",
    ) -> None:
        self._max_requests = queue.max_concurrent_requests
        self._timeouts = timeouts
        self._loop = loop
        self._clock = clock
        self._dial_to = dial_to
        self._api_key = api_key
        self._probe_of = probe_of
        self._model_name = model_name
        self._served: Served | None = None
        """The model, and the context of a request, that peers must have."""
        self.replicas: dict[str, Replica] = {}
        """By ``EngineAddress.key``; those that are leaving too."""
        self.status = EngineStatus(ChildState.STARTING, since=clock.wall)
        """Of the only replica, or a summary of all."""
        self._absence: Roster | None = None
        self.is_ready = False
        """Whether requests may be sent to a replica now."""
        self.has_choice = False
        """Whether there are several replicas."""
        self.follows_sessions = False
        """Whether the session of a request decides where it goes."""
        self._has_affinity = queue.affinity != "off"
        self.on_silent: Callable[[Replica], None] = _ignore_replica
        """Called when a replica no longer responds at all, while it works on requests."""
        self.keeps_prompts = False
        """Whether a supervisor keeps the prompts of an engine."""
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
            LivenessCheck(loop, tracker, self._probe_of(address).look),
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
        replica = self.replicas.pop(key)
        replica.pool.retire_idle()
        replica.liveness.release()
        self._on_number_changed()
        self._sum_up()

    def _on_number_changed(self) -> None:
        self.has_choice = len(self.replicas) > 1
        self.follows_sessions = self.has_choice and self._has_affinity
        for replica in self.replicas.values():
            replica.tracker.label = replica.label if self.has_choice else ""
            replica.pool.passes_refusals = not self.has_choice

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
        if status.prompt_cache and replica.owners is None:
            replica.owners = set()
            self.keeps_prompts = True
        replica.tracker.update(status)
        if status.is_removed:
            self.remove(key)

    def set_absence(self, absence: Roster) -> None:
        """Without a replica, the status is as *absence* has it."""
        self._absence = absence
        self._sum_up()

    def now(self) -> float:
        """On the gateway's clock."""
        return self._clock.now()

    @property
    def moves(self) -> Mapping[str, int]:
        """Sessions that moved to another replica, by reason."""
        return self._balancer.moves

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
        is_asleep = not self.replicas and self.status.state is ChildState.ASLEEP
        for replica in self.replicas.values():
            if replica.tracker.status.state is ChildState.ASLEEP:
                is_asleep = True
        if is_asleep:
            self._loop.call_soon(self.on_engine_requested)  # when it is in the queue
        if not (may_wait and self.may_come):
            raise self.unavailable()

    def unavailable(self) -> GatewayError:
        """Why a request cannot be sent to a replica now."""
        return unavailable(self.status.state)

    def tick(self, now: float, *, is_late: bool) -> None:
        """Twice a second: old connections, and what is overdue unless the tick *is_late*."""
        self.crash_memory.forget(now)
        for key, replica in tuple(self.replicas.items()):
            replica.pool.on_tick()
            if not is_late:
                replica.pool.cut_overdue()
            if replica.standing.on_time(now) or (
                not self.admission.queued and replica.standing.on_empty_queue()
            ):
                self._on_replica_change(replica)
            if now >= replica.unreachable_since + SILENT_SECONDS and self.has_other(replica):
                replica.unreachable_since = math.inf
                self.on_silent(replica)
            if replica.is_leaving and replica.is_unused:
                self._forget(key)

    # A connection was lost ------------------------------------------------------------------------

    def on_connection_lost(self, replica: Replica) -> None:
        """Send nothing to *replica* until it is known whether it lives, if there is another."""
        if not self.has_choice:
            return
        standing = replica.standing
        was_doubted = standing.state is State.DOUBTED
        if standing.on_lost(self._clock.now(), has_other=self.has_other(replica)):
            self._on_ejected(replica, "connections_lost")
        elif standing.state is State.DOUBTED and not was_doubted:

            def on_known() -> None:
                standing.on_alive()
                self._on_replica_change(replica)

            replica.liveness.wait(replica, on_known)
            self._on_replica_change(replica)

    def on_good_response(self, replica: Replica) -> None:
        """A replica that ``is_watched`` has responded with a status under 500."""
        before = replica.standing.limit(NO_LIMIT)
        replica.standing.on_response(self._slots(replica))
        if replica.standing.limit(NO_LIMIT) != before:
            self._loop.call_soon(self._on_replica_change, replica)

    def on_error_response(self, replica: Replica) -> None:
        """A replica has responded with a status from 500 on."""
        replica.errors += 1
        if not self.has_choice:
            return
        others = 0
        for each in self.replicas.values():
            if each is not replica:
                others += each.good_responses
        has_other = self.has_other(replica)
        if replica.standing.on_error(self._clock.now(), has_other=has_other, others=others):
            self._on_ejected(replica, "errors")

    def on_refused(self, replica: Replica, retry_after: float | None) -> None:
        """A replica has refused a request: another one may take it."""
        replica.refusals += 1
        if not (replica.is_gateway or replica.tracker.is_supervised or retry_after is not None):
            # As llama-server responds while it loads: the next probe will show.
            status = replica.tracker.status.moved(ChildState.LOADING, self._clock.wall)
            replica.tracker.update(status)
            return
        seconds = min(
            DEFAULT_BUSY_SECONDS if retry_after is None else retry_after, MAX_BUSY_SECONDS
        )
        replica.standing.on_refused(self._clock.now() + seconds)
        self._set_slots(replica)  # at once: the request is about to be sent elsewhere
        self._loop.call_soon(self._on_replica_change, replica)

    def refusal(self) -> GatewayError | None:
        """What a client gets whose request every replica has refused; None if one may take it."""
        until = math.inf
        for replica in self.replicas.values():
            if replica.is_candidate:
                if replica.standing.state is not State.BUSY:
                    return None
                until = min(until, replica.standing.until)
        if until == math.inf:
            return None
        return QueueFull(
            "All replicas have refused the request, because they are busy.",
            retry_after=max(until - self._clock.now(), 0.1),
        )

    def _on_ejected(self, replica: Replica, reason: str) -> None:
        replica.ejections[reason] += 1
        _log.warning(
            "replica_ejected",
            "Replica {replica} gets no requests for {seconds:.0f} s: {reason}",
            replica=replica.label,
            seconds=replica.standing.until - self._clock.now(),
            reason=_REASONS[reason],
        )
        self._set_slots(replica)  # at once: the request is about to be sent elsewhere
        self._loop.call_soon(self._on_replica_change, replica)

    def wait_to_replay(
        self, request: object, failed: Replica | None, on_done: Callable[[], None]
    ) -> None:
        """Call *on_done*, later, when *request* can be sent again that *failed* has lost."""
        if failed is None or self.has_other(failed):
            self._loop.call_soon(on_done)
        else:
            failed.liveness.wait(request, on_done)

    def has_other(self, replica: Replica) -> bool:
        """Whether another one can take requests now."""
        return any(each is not replica and each.is_usable for each in self.replicas.values())

    # A replica has changed ----------------------------------------------------------------------

    def _on_replica_change(self, replica: Replica) -> None:
        """Slots come and go with the engine."""
        self._note_turns(replica)
        if not replica.is_candidate:
            replica.pool.retire_idle()
        self._compare_models()
        self._recall_if_needed()
        self._set_slots(replica)
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

    def _set_slots(self, replica: Replica) -> None:
        total, side = 0, 0
        if replica.is_candidate:
            total = replica.standing.limit(self._slots(replica))
            side = replica.standing.limit(SIDE_REQUESTS)
        replica.slots.total, replica.side_slots.total = total, side
        if not replica.is_leaving:
            self._balancer.changed(replica.slots)
            self._side_balancer.changed(replica.side_slots)

    def _note_turns(self, replica: Replica) -> None:
        """It may have become ready, or unreachable."""
        is_ready = replica.tracker.is_ready
        if is_ready and not replica.was_ready:
            is_gradual = self.admission.running > 0 and self.has_other(replica)
            replica.standing.on_loaded(is_gradual=is_gradual)
            replica.was_ready = True
            for each in self.replicas.values():
                if each is not replica and each.liveness.is_waited_for:
                    self.on_connection_lost(each)  # there is another now
                    each.liveness.release(each)
        replica.was_ready = is_ready
        status = replica.tracker.status
        if not (status.is_silent or status.state is ChildState.UNREACHABLE):
            replica.unreachable_since = math.inf
        elif replica.unreachable_since == math.inf:
            replica.unreachable_since = self._clock.now()

    def _recall_if_needed(self) -> None:
        """Try ejected replicas before their time, where no other one can take requests."""
        if self.has_choice and not any(each.is_usable for each in self.replicas.values()):
            for each in self.replicas.values():
                if each.is_candidate and each.standing.on_needed():
                    self._set_slots(each)

    def _compare_models(self) -> None:
        """Leave out peers that have another model, and take back those that no longer have."""
        if not self.has_choice:
            for only in self.replicas.values():
                only.mismatch = ""
            return
        replicas = [each for each in self.replicas.values() if not each.is_leaving]
        allowed = decisive(
            [
                Candidate(each.served, is_local=each.tracker.is_supervised)
                for each in replicas
                if each.tracker.is_ready
            ],
            self._served,
            self._model_name,
        )
        if allowed:
            self._served = allowed[0]
        for each in replicas:
            found = ""
            if each.tracker.is_ready and not each.tracker.is_supervised:
                found = difference(each.served, allowed)
            if found != each.mismatch:
                each.mismatch = found
                _log_mismatch(each)
                self._set_slots(each)

    def _slots(self, replica: Replica) -> int:
        return self._max_requests or replica.tracker.status.slots or DEFAULT_SLOTS

    def _sum_up(self) -> None:
        replicas = [each for each in self.replicas.values() if not each.is_leaving]
        self.is_ready = any(each.is_candidate for each in replicas)
        served = [each for each in replicas if not each.mismatch] or replicas
        if served:
            self.status = EngineStatus.of_all([each.tracker.status for each in served])
        elif self._absence is not None:
            absence = self._absence
            status = self.status.moved(absence.state, self._clock.wall, detail=absence.detail)
            model = status.model or absence.model
            self.status = replace(status, progress=absence.progress, model=model)


def _log_mismatch(replica: Replica) -> None:
    if replica.mismatch:
        _log.warning(
            "replica_mismatch",
            "Replica {replica} gets no requests: {reason}",
            replica=replica.label,
            reason=replica.mismatch,
        )
    else:
        _log.info("replica_matches", "Replica {replica} gets requests again", replica=replica.label)


def _ignore() -> None:
    """A gateway on its own cannot start an engine."""


def _ignore_replica(_replica: Replica) -> None:
    """No requests are under way."""
