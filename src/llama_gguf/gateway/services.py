"""What the connections of one gateway use together, each part under its own name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.key_store import KeyStore
from llama_gguf.access.networks import parse_network
from llama_gguf.config.settings import Settings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.engines.source import source_of
from llama_gguf.gateway.budget_sink import BudgetSink
from llama_gguf.gateway.connections import Connections
from llama_gguf.gateway.event_watch import EventWatch
from llama_gguf.gateway.fleet import Fleet
from llama_gguf.gateway.gpu_reader import GpuReader
from llama_gguf.gateway.head_cache import HeadCache, Known
from llama_gguf.gateway.metrics_reader import EngineReader, Readable
from llama_gguf.gateway.replica import Replica
from llama_gguf.gateway.replica_sink import ReplicaSink
from llama_gguf.gateway.request_ids import RequestIds
from llama_gguf.gateway.sharing import shared_store_of
from llama_gguf.gateway.spared_prompts import SparedPrompts
from llama_gguf.gateway.sse_keepalive import StreamSearches
from llama_gguf.gateway.tracing import traces_of
from llama_gguf.http1.known_head import NO_HEAD
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.request_reader import RequestReader
from llama_gguf.net.clock import Clock
from llama_gguf.net.connector import Dial
from llama_gguf.scheduling.body_memory import BodyMemory
from llama_gguf.scheduling.fair_queue import Turns
from llama_gguf.telemetry.access_log import AccessLog, RequestLog
from llama_gguf.telemetry.formats import Format
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.recent_requests import RecentRequests
from llama_gguf.telemetry.recorder import Recorder
from llama_gguf.telemetry.timeseries import History
from llama_gguf.telemetry.usage_totals import UsageTotals

if TYPE_CHECKING:
    from llama_gguf.engines.roster import Demand


class Services:
    """Made once per gateway.

    Args:
        settings: with directories filled in.
        loop: of the gateway.
        dial_to: makes what connects to an engine.
        probe_of: makes what probes one.
        is_supervised: whether a supervisor on this machine has engines too.
    """

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        dial_to: Callable[[EngineAddress], Dial],
        *,
        probe_of: Callable[[EngineAddress], Probe] = Probe,
        is_supervised: bool = False,
    ) -> None:
        self._probe_of = probe_of
        self.auth = settings.auth
        self.trusted_proxies = tuple(map(parse_network, settings.auth.trusted_proxies))
        self.routes = settings.routes
        self.queue = settings.queue
        self.timeouts = settings.timeouts
        self.limits = settings.limits
        self.logs = settings.logs
        # What each request reads: an attribute of a compiled class costs a tenth.
        self.max_body_size = settings.limits.max_request_body_size
        self.request_timeout = settings.timeouts.request_timeout
        self.keepalive_timeout = settings.limits.keepalive_timeout
        self.shows_replica = settings.routes.exposed_routes == "all"
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
        self.shared = shared_store_of(settings.shared, loop, self.clock)
        """None unless limits are shared with other gateways."""
        self.authenticator = (
            Authenticator(settings.auth)
            if self.shared is None
            else Authenticator(settings.auth, self.shared.new_limiter, self.shared.new_share)
        )
        self.head_cache = HeadCache(
            Known(NO_HEAD, self.reader.unread, None, self.authenticator.ring)
        )
        self.key_store = KeyStore(
            settings.auth.auth_keys_file, self.authenticator, self.metrics.count_reload
        )
        self.fleet = Fleet(
            settings.queue,
            settings.timeouts,
            loop=loop,
            clock=self.clock,
            dial_to=dial_to,
            are_several=self.authenticator.are_several,
            turns_of=self._turns_of,
            probe_of=probe_of,
            api_key=settings.upstream.backend_api_key,
            model_name=settings.model.model_name,
        )
        self.fleet.on_silent = self._on_silent_replica
        upstream = settings.upstream
        if is_supervised or not upstream.peers:
            self.fleet.add(EngineAddress.of(upstream)).tracker.is_supervised = is_supervised
        self.peers = source_of(upstream.peers, upstream.backend_api_key, load=self._load)
        if not is_supervised:
            self.fleet.on_engine_requested = self.peers.wake
        self.body_memory = BodyMemory(
            settings.limits.max_body_memory, self.authenticator.are_several
        )
        self.stream_searches = StreamSearches()
        self.access_log = AccessLog(
            os.path.join(settings.logs.log_dir, "api_access.log"),
            settings.logs.log_format,
            max_bytes=settings.logs.log_max_bytes,
            backups=settings.logs.log_backups,
        )
        self.usage = UsageTotals(self.clock.wall)
        """Of this gateway and those that have the same file."""
        self.replica_sink = ReplicaSink(self.fleet, self.clock.now)
        self.spared_prompts = SparedPrompts(self.fleet)
        self.recent = RecentRequests()
        self.traces = traces_of(settings, self.clock)
        self.recorder = Recorder(
            [
                self.replica_sink,
                self.spared_prompts,
                BudgetSink(self.authenticator.budgets, self.clock),
                self.metrics,
                self.usage,
                *([] if self.shared is None else [self.shared.usage.totals]),
                self.access_log,
                self.recent,
                *([RequestLog()] if settings.logs.log_requests else []),
                *([] if self.traces is None else [self.traces]),
            ],
            wall=lambda: self.clock.wall,
        )
        self.history = History(self.clock.steady())
        self.event_watch = EventWatch(self.metrics, self.fleet)
        self.gpus = GpuReader(loop)
        self.engine_reader = EngineReader(self._readable)
        self.scrapes: dict[Format, tuple[LocalResponse, float]] = {}
        """Metrics that were expensive to render, and until when they are sent again."""
        # Those that are rendered now, for all who request them meanwhile.
        self.renderings: dict[Format, asyncio.Task[LocalResponse]] = {}
        self._note_wall_clock()

    @property
    def shown_usage(self) -> UsageTotals:
        """Of all gateways that share limits."""
        return self.usage if self.shared is None else self.shared.usage.totals

    def tick(self, *, is_late: bool = False) -> None:
        """Twice a second: the clock, old connections, and deadlines unless *is_late*."""
        self.clock.tick()
        self._note_wall_clock()
        self.head_cache.forget()
        now = self.clock.now()
        self.fleet.tick(now, is_late=is_late)
        if self.traces is not None:
            engine = self.fleet.status
            self.traces.note_engine(serves=engine.serves, since=engine.since, model=engine.model)
        if is_late:
            return
        for connection in self.connections:
            connection.on_tick(now)
        self.stream_searches.advance(now)

    def _note_wall_clock(self) -> None:
        self.access_log.wall_offset = self.clock.wall - self.clock.now()
        self.recent.offset = self.access_log.wall_offset

    def _readable(self) -> list[Readable]:
        """The replicas whose own metrics can be read."""
        fleet = self.fleet
        return [
            Readable(
                self._probe_of(replica.address),
                replica.label if fleet.has_choice else "",
                is_busy=replica.tracker.is_ready and replica.slots.in_use > 0,
            )
            for replica in fleet.replicas.values()
            if not replica.is_gateway
        ]

    def _load(self) -> Demand:
        from llama_gguf.engines.roster import Demand  # noqa: PLC0415  # of few gateways

        fleet = self.fleet
        return Demand(
            queued=fleet.admission.queued + fleet.side_admission.queued,
            running={
                key: used
                for key, replica in fleet.replicas.items()
                if (used := replica.slots.in_use + replica.side_slots.in_use)
            },
            at_once=self.queue.max_concurrent_requests,
        )

    def _on_silent_replica(self, replica: Replica) -> None:
        for connection in tuple(self.connections):
            connection.on_silent_replica(replica)

    def _turns_of(self, key_id: str) -> Turns:
        attributes = self.authenticator.attributes_of(key_id)
        return Turns(attributes.weight, is_low=attributes.priority == "low")
