"""What the connections of one gateway use together, each part under its own name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.key_store import KeyStore
from llama_gguf.config.schema import DEFAULT_SLOTS
from llama_gguf.config.settings import Settings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.engines.source import EngineSource, StaticSource
from llama_gguf.gateway.connections import Connections
from llama_gguf.gateway.engine_tracker import EngineTracker
from llama_gguf.gateway.head_cache import HeadCache, Known
from llama_gguf.gateway.metrics_reader import EngineReader
from llama_gguf.gateway.pool import IDLE_SECONDS, ConnectionPool
from llama_gguf.gateway.replica import Replica
from llama_gguf.gateway.request_ids import RequestIds
from llama_gguf.gateway.sse_keepalive import StreamSearches
from llama_gguf.http1.known_head import NO_HEAD
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.request_reader import RequestReader
from llama_gguf.net.clock import Clock
from llama_gguf.net.connector import Dial
from llama_gguf.scheduling.admission import Admission
from llama_gguf.scheduling.balancer import OneEngine
from llama_gguf.scheduling.body_memory import BodyMemory
from llama_gguf.scheduling.crash_memory import CrashMemory
from llama_gguf.scheduling.replay_order import ReplayOrder
from llama_gguf.telemetry.access_log import AccessLog
from llama_gguf.telemetry.formats import Format
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.recorder import Recorder
from llama_gguf.telemetry.timeseries import History
from llama_gguf.telemetry.usage_totals import UsageTotals

SIDE_REQUESTS: Final = 4
"""At the engine at once that use no slot: llama-server has four HTTP threads more than slots."""
SIDE_REQUESTS_PER_KEY: Final = 2


class Services:
    """Made once per gateway.

    Args:
        settings: with directories filled in.
        loop: of the gateway.
        dial_to: makes what connects to an engine.
    """

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        dial_to: Callable[[EngineAddress], Dial],
    ) -> None:
        self.auth = settings.auth
        self.routes = settings.routes
        self.queue = settings.queue
        self.timeouts = settings.timeouts
        self.limits = settings.limits
        # What each request reads: an attribute of a compiled class costs a tenth.
        self.max_body_size = settings.limits.max_request_body_size
        self.request_timeout = settings.timeouts.request_timeout
        self.keepalive_timeout = settings.limits.keepalive_timeout
        self.loop = loop
        self.clock = Clock()
        self.reader = RequestReader(
            settings.limits,
            settings.routes,
            keep_credentials=not (settings.auth.auth_enabled or settings.upstream.backend_api_key),
        )
        self.request_ids = RequestIds()
        self.connections = Connections(settings.limits.max_connections)
        self.metrics = Metrics()
        """Of finished exchanges, those that ``recorder`` has passed on."""
        self.authenticator = Authenticator(settings.auth)
        nothing = Known(NO_HEAD, self.reader.unread, None, self.authenticator.ring)
        self.head_cache = HeadCache(nothing)
        self.key_store = KeyStore(
            settings.auth.auth_keys_file, self.authenticator, self.metrics.count_reload
        )
        self._dial_to = dial_to
        self.engines: EngineSource = StaticSource(EngineAddress.of(settings.upstream))
        self.replica = self._new_replica(self.engines.addresses[0])
        """The only engine so far: the balancers choose it, and no other part assumes it."""
        self.engine = self.replica.tracker
        are_several = self.authenticator.are_several
        self.admission = Admission(
            OneEngine(self.replica.slots),
            queue_size=settings.queue.max_queue_size,
            per_key=settings.queue.max_concurrent_per_key,
            is_shared=are_several,
        )
        self.side_admission = Admission(
            OneEngine(self.replica.side_slots),
            queue_size=settings.queue.max_queue_size,
            running_per_key=SIDE_REQUESTS_PER_KEY,
            is_shared=are_several,
        )
        """Of requests that use no slot."""
        self.body_memory = BodyMemory(settings.limits.max_body_memory, are_several)
        self.replay_order = ReplayOrder()
        self.crash_memory = CrashMemory()
        self.stream_searches = StreamSearches()
        self.access_log = AccessLog(
            os.path.join(settings.logs.log_dir, "api_access.log"),
            settings.logs.log_format,
            max_bytes=settings.logs.log_max_bytes,
            backups=settings.logs.log_backups,
        )
        self.usage = UsageTotals(self.clock.wall)
        self.recorder = Recorder(
            [self.metrics, self.usage, self.access_log], wall=lambda: self.clock.wall
        )
        self.history = History(self.clock.now())
        self.engine_reader = EngineReader(Probe(self.replica.address), self._is_engine_busy)
        self.scrapes: dict[Format, tuple[LocalResponse, float]] = {}
        """Metrics that were expensive to render, and until when they are sent again."""
        self._note_wall_clock()

    def tick(self, *, is_late: bool = False) -> None:
        """Twice a second: the clock, old connections, and deadlines unless *is_late*."""
        self.clock.tick()
        self._note_wall_clock()
        self.head_cache.forget()
        pool = self.replica.pool
        pool.retire_idle(IDLE_SECONDS)
        if is_late:
            return
        pool.cut_overdue()
        now = self.clock.now()
        self.crash_memory.forget(now)
        for connection in self.connections:
            connection.on_tick(now)
        self.stream_searches.advance(now)

    def _note_wall_clock(self) -> None:
        self.access_log.wall_offset = self.clock.wall - self.clock.now()

    # The engine ---------------------------------------------------------------------------------

    def _new_replica(self, address: EngineAddress) -> Replica:
        replica = Replica(
            address,
            EngineTracker(self.loop, self.clock.wall, self._on_engine_change),
            ConnectionPool(self.timeouts, self.loop, self._dial_to(address)),
        )
        replica.side_slots.total = SIDE_REQUESTS
        return replica

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

    def _slots(self) -> int:
        return self.queue.max_concurrent_requests or self.engine.status.slots or DEFAULT_SLOTS

    def _is_engine_busy(self) -> bool:
        return self.engine.is_ready and self.admission.running > 0
