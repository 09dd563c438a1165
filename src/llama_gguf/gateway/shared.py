"""Shared by all connections of a gateway: prepared settings, keys, queue, counters.

What does not change from request to request is prepared here, at start and at
reload, so that the hot path only joins bytes.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from llama_gguf.core.admission import Admission
from llama_gguf.core.body_memory import BodyMemory
from llama_gguf.core.engine import DEFAULT_SLOTS, MAY_COME, EngineState, EngineStatus
from llama_gguf.core.fields import VIA_PSEUDONYM, read_request, request_rules
from llama_gguf.core.keys import KeyRing
from llama_gguf.core.ledger import Ledger
from llama_gguf.core.messages import KnownHead, Request, RequestHead, unread
from llama_gguf.core.metrics import Format, Metrics
from llama_gguf.core.replies import Cors, OwnAnswer
from llama_gguf.core.ring import Ring
from llama_gguf.core.routes import Router
from llama_gguf.core.settings import Settings
from llama_gguf.errors import (
    BackendUnavailable,
    Draining,
    GatewayError,
    HeadTooLarge,
    ModelLoading,
)
from llama_gguf.events import EventLog
from llama_gguf.gateway.access_log import AccessLog
from llama_gguf.gateway.accounts import Accounts
from llama_gguf.gateway.dialer import Dial
from llama_gguf.gateway.engine_reader import EngineReader
from llama_gguf.gateway.pool import IDLE_SECONDS, Pool
from llama_gguf.gateway.principals import Principal, Principals
from llama_gguf.gateway.reloads import Reloads
from llama_gguf.gateway.sse_keepalive import StreamSearches
from llama_gguf.probe import Probe

if TYPE_CHECKING:
    from llama_gguf.gateway.client_connection import ClientConnection

_log: Final = EventLog(__name__)

MODEL_LOADING_RETRY_SECONDS: Final = 5.0
BACKEND_RETRY_SECONDS: Final = 2.0
DRAINING_RETRY_SECONDS: Final = 2.0
ENGINE_NEWS_SECONDS: Final = 0.5
"""For the supervisor to say that the engine has died."""
SIDE_REQUESTS: Final = 4
"""At the engine at once that use no slot: llama-server has four HTTP threads more than slots."""
SIDE_REQUESTS_PER_KEY: Final = 2
_LAST_DIGITS: Final = [b"%02x" % n for n in range(256)]


class Shared:
    """Made once per gateway; every connection holds it.

    Args:
        settings: with folders filled in.
        loop: whose clock is everybody's ``now``.
        dial: connects to the engine.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop, dial: Dial) -> None:
        self.settings = settings
        self.loop = loop
        self.now: Callable[[], float] = time.monotonic  # uvloop's own clock ticks in ms
        self.router = Router(
            expose_all=settings.exposed_routes == "all",
            dashboard=settings.dashboard,
            web_ui=settings.web_ui,
        )
        self.cors = Cors(settings.cors_origins)
        self.access_log = AccessLog(
            os.path.join(settings.log_dir, "api_access.log"),
            settings.log_format,
            max_bytes=settings.log_max_bytes,
            backups=settings.log_backups,
        )
        self.accounts = Accounts(
            self.access_log.add, ledger=Ledger(wall_now()), wall=lambda: self.wall
        )
        self.history = Ring(time.monotonic())
        self.scrapes: dict[Format, tuple[OwnAnswer, float]] = {}
        """Metrics that were dear to make, and until when they are told again."""
        self.engine_reader = EngineReader(Probe(settings), self._is_engine_busy)
        self.principals = Principals(settings)
        self.reloads = Reloads(settings.auth_keys_file, self.principals, self._count_reload)
        self.admission = Admission(
            slots=0,
            queue_size=settings.max_queue_size,
            per_key=settings.max_concurrent_per_key,
            is_shared=self.principals.are_several,
        )
        self.side_admission = Admission(
            slots=SIDE_REQUESTS,
            queue_size=settings.max_queue_size,
            running_per_key=SIDE_REQUESTS_PER_KEY,
            is_shared=self.principals.are_several,
        )
        """For requests that use no slot: they take threads and time of the engine all the same."""
        self.pool = Pool(settings, loop, dial)
        self.engine = EngineStatus(EngineState.STARTING, since=wall_now())
        self.heard_at = -math.inf
        """When the engine was last seen to answer, on the clock of ``now``."""
        self.is_supervised = False
        """Whether a supervisor says how the engine is."""
        self.on_engine_wanted: Callable[[], None] = _nobody_listens
        """Called when a request comes for an engine that is asleep."""
        self.connections: set[ClientConnection] = set()
        self.body_memory = BodyMemory(settings.max_body_memory, self.principals.are_several)
        self.stream_searches = StreamSearches()
        self.is_draining = False
        self.idle = asyncio.Event()
        """Set while draining, when no exchange runs any more."""
        self.started_at = time.monotonic()
        self._rules = request_rules(
            keep_credentials=not settings.auth_enabled and not settings.backend_api_key,
            keep_conversations=self.router.exposes_all,
        )
        self._upstream_prefix = _upstream_prefix(settings)
        self.unread = unread(self.cors.fields(None))
        self.last_known: tuple[KnownHead, Request, Principal, KeyRing] | None = None
        """The last head whose sender became known: new connections mostly come in crowds that say
        the same. Kept until the next tick, since there is a key in it."""
        # What is asked for again and again, one step nearer.
        self.max_connections = settings.max_connections
        self.max_body_bytes = settings.max_request_body_size
        self.request_timeout = settings.request_timeout
        self.max_request_duration = settings.max_request_duration
        self.keepalive_timeout = settings.keepalive_timeout
        self.sse_keepalive = settings.sse_keepalive
        self.client_header_timeout = settings.client_header_timeout
        self.engine_is_ready = False
        self.max_head_bytes = settings.max_request_line_size + 8 * settings.max_header_line_size
        self._id_prefix = b"req-%b-" % os.urandom(6).hex().encode("ascii")
        self._id_block, self._id_count = b"", 0
        self.date = b""
        self.wall = 0.0
        self.tell_time()

    # Time ---------------------------------------------------------------------------------------

    def tick(self, *, is_late: bool = False) -> None:
        """Twice a second: the date, old connections, deadlines; of the last none when *is_late*."""
        self.tell_time()
        self.last_known = None
        self.pool.retire_idle(IDLE_SECONDS)
        if is_late:
            return
        self.pool.cut_overdue()
        now = self.now()
        for connection in tuple(self.connections):
            connection.on_tick(now)
        self.stream_searches.advance(now)

    def tell_time(self) -> None:
        """Read the wall clock: a request may live with what it was half a second ago."""
        self.wall = wall_now()
        self.access_log.wall_offset = self.wall - self.now()
        # RFC 9110 section 5.6.7; English whatever the locale, since nobody calls setlocale.
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.wall))
        self.date = b"Date: %b\r\n" % date.encode("ascii")

    # Requests -----------------------------------------------------------------------------------

    def next_request_id(self) -> bytes:
        """Unique in this process by a counter, and among processes by a random prefix."""
        count = self._id_count
        self._id_count = count + 1
        if not count & 255:  # formatted once in 256 times
            self._id_block = b"%b%06x" % (self._id_prefix, count >> 8)
        return self._id_block + _LAST_DIGITS[count & 255]

    def understand(self, head: RequestHead, cors: bytes) -> Request:
        """Work out all that *head* says.

        Raises:
            HeadTooLarge: it has too many fields.
            BadRequest: framing or Host is missing, double or malformed.
            ExpectationFailed: it expects what nobody understands.
        """
        if len(head.fields) > self.settings.max_headers:
            raise HeadTooLarge("The request has too many header fields.", close=True)
        return Request(
            head,
            cors=cors,
            read=read_request(head.fields, version=head.version, rules=self._rules),
            route=self.router.route(head.method, head.path),
            prefix=self._upstream_prefix,
            via=VIA_PSEUDONYM,
        )

    @property
    def metrics(self) -> Metrics:
        return self.accounts.metrics

    def _count_reload(self, result: str) -> None:
        self.metrics.keys_reload[result] += 1

    # Engine -------------------------------------------------------------------------------------

    def take_engine_status(self, status: EngineStatus) -> None:
        """Learn how the engine is: slots come and go with it."""
        if status.state is not self.engine.state:
            _log.info(
                "engine_state",
                "Engine state: {state} ({detail})" if status.detail else "Engine state: {state}",
                state=status.state,
                detail=status.detail,
            )
        self.engine = status
        self.engine_is_ready = status.serves
        if not status.serves:
            self.pool.retire_idle()
            for ticket in self.side_admission.waiting():
                ticket.on_refused(self.unavailable())
        self.admission.resize(self._slots() if status.serves else 0)
        if not self._engine_may_come:
            for ticket in self.admission.waiting():
                ticket.on_refused(self.unavailable())

    def _slots(self) -> int:
        return self.settings.max_concurrent_requests or self.engine.slots or DEFAULT_SLOTS

    def _is_engine_busy(self) -> bool:
        return self.engine_is_ready and self.admission.running > 0

    def suspect_engine(self) -> bool:
        """It refused a connection, or broke one off. Returns whether requests may wait for it.

        It is dying, most likely, and its supervisor says so in a moment. Until then, or until
        it is clear that nothing is said, nothing more is sent: it would be lost.
        """
        if self.is_supervised and self.engine_is_ready:
            self.engine_is_ready = False
            self.pool.retire_idle()
            self.admission.resize(0)
            self.loop.call_later(ENGINE_NEWS_SECONDS, lambda: self.take_engine_status(self.engine))
        return self.is_supervised and self._engine_may_come

    @property
    def _engine_may_come(self) -> bool:
        return self.engine.serves or self.engine.state in MAY_COME

    def await_engine(self, needs_slot: bool) -> None:
        """Decide on a request that has come while the engine does not serve.

        Raises:
            ModelLoading, BackendUnavailable: it cannot wait.
        """
        if self.engine.state is EngineState.ASLEEP:
            self.loop.call_soon(self.on_engine_wanted)  # when it is in the queue
        if not (needs_slot and self._engine_may_come):
            raise self.unavailable()

    def unavailable(self) -> GatewayError:
        """Why nothing can be sent to the engine now."""
        if self.engine.state in (EngineState.STARTING, EngineState.LOADING, EngineState.ASLEEP):
            return ModelLoading(
                "The model is still loading; try again later.",
                retry_after=MODEL_LOADING_RETRY_SECONDS,
            )
        return BackendUnavailable("The engine is not available.", retry_after=BACKEND_RETRY_SECONDS)

    def draining(self) -> GatewayError:
        return Draining("The server is shutting down.", retry_after=DRAINING_RETRY_SECONDS)

    # Draining -----------------------------------------------------------------------------------

    def busy(self) -> int:
        """How many exchanges are under way."""
        return sum(connection.is_busy for connection in self.connections)

    def notice_idle(self) -> None:
        if not self.busy():
            self.idle.set()


def _nobody_listens() -> None:
    """A gateway on its own has nobody to tell."""


def wall_now() -> float:
    """POSIX seconds. For people and for expiry, never for durations."""
    return datetime.now(UTC).timestamp()


def _upstream_prefix(settings: Settings) -> bytes:
    """The lines that begin every head sent to the engine, after the request line."""
    if settings.backend_socket:
        host = "localhost"
    elif ":" in settings.backend_host:
        host = f"[{settings.backend_host}]:{settings.port_backend}"
    else:
        host = f"{settings.backend_host}:{settings.port_backend}"
    lines = f"Host: {host}\r\n"
    if settings.backend_api_key:
        lines += f"Authorization: Bearer {settings.backend_api_key}\r\n"
    return lines.encode("ascii")
