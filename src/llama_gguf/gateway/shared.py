"""What all connections of one gateway share: settings made ready, keys, queue, counters.

What does not change from request to request is prepared here, at start and at
reload, so that the hot path only joins bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Final

from llama_gguf import __version__, keyfile
from llama_gguf.core.admission import Admission
from llama_gguf.core.engine import DEFAULT_SLOTS, MAY_COME, EngineState, EngineStatus
from llama_gguf.core.exchange import Exchange
from llama_gguf.core.fields import VIA_PSEUDONYM
from llama_gguf.core.keys import Key, KeyRing
from llama_gguf.core.limits import FailureLimit, SlidingWindow
from llama_gguf.core.metrics import Gauges, Metrics, as_json
from llama_gguf.core.replies import Cors
from llama_gguf.core.routes import Router
from llama_gguf.core.settings import Settings
from llama_gguf.errors import (
    BackendUnavailable,
    Draining,
    GatewayError,
    ModelLoading,
    ReloadFailed,
    UserError,
)
from llama_gguf.gateway.access_log import AccessLog, Record
from llama_gguf.gateway.pool import Pool

if TYPE_CHECKING:
    from llama_gguf.gateway.client import ClientConnection

_log: Final = logging.getLogger(__name__)

MODEL_LOADING_RETRY_SECONDS: Final = 5.0
BACKEND_RETRY_SECONDS: Final = 2.0
DRAINING_RETRY_SECONDS: Final = 2.0


class Principal:
    """Who asks: a key with its window. Stays the same while the key stays in the file."""

    __slots__ = ("key", "window")

    def __init__(self, key: Key, window: SlidingWindow) -> None:
        self.key = key
        self.window = window


class Shared:
    """Made once per gateway; every connection holds it.

    Args:
        settings: with folders filled in.
        loop: whose clock is everybody's ``now``.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.now: Callable[[], float] = time.monotonic  # uvloop's own clock ticks in ms
        self.router = Router(expose_all=settings.exposed_routes == "all")
        self.cors = Cors(settings.cors_origins)
        self.metrics = Metrics()
        self.access_log = AccessLog(
            os.path.join(settings.log_dir, "api_access.log"), settings.log_format
        )
        self.failures = FailureLimit(per_minute=settings.auth_failures_per_minute)
        self.admission = Admission(
            slots=0, queue_size=settings.max_queue_size, per_key=settings.max_concurrent_per_key
        )
        self.pool = Pool(settings, loop)
        self.engine = EngineStatus(EngineState.STARTING, since=wall_now())
        self.connections: set[ClientConnection] = set()
        self.body_bytes = 0
        """Of all bodies that wait, together."""
        self.is_draining = False
        self.idle = asyncio.Event()
        """Set while draining, when no exchange runs any more."""
        self.started_at = time.monotonic()
        # A client's own credentials pass where nobody checks them and nothing replaces them.
        self.keeps_credentials = not settings.auth_enabled and not settings.backend_api_key
        self.upstream_prefix = _upstream_prefix(settings)
        self.via = b"\r\nVia: 1.1 %b\r\n" % VIA_PSEUDONYM
        self.via_1_0 = b"\r\nVia: 1.0 %b\r\n" % VIA_PSEUDONYM
        self.max_head_bytes = settings.max_request_line_size + 8 * settings.max_header_line_size
        self._request_ids = _request_ids()
        self.ring = KeyRing.parse("")
        self._principals: dict[str, Principal] = {}
        self.date = b""
        self.wall = 0.0
        self._wall_offset = 0.0
        self.tell_time()

    # Time ---------------------------------------------------------------------------------------

    def tell_time(self) -> None:
        """Read the wall clock; called twice a second, since a request may live with that."""
        self.wall = wall_now()
        self._wall_offset = self.wall - self.now()
        # RFC 9110 section 5.6.7; English whatever the locale, since nobody calls setlocale.
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.wall))
        self.date = b"Date: %b\r\n" % date.encode("ascii")

    def next_request_id(self) -> str:
        return next(self._request_ids)

    # Keys ---------------------------------------------------------------------------------------

    def load_keys(self) -> int:
        """Read the keys file; the old set stays on any error.

        Returns:
            The number of keys loaded.

        Raises:
            ReloadFailed: the file cannot be read; nothing has changed.
        """
        path = self.settings.auth_keys_file
        try:
            ring = KeyRing.parse(keyfile.read(path))
        except UserError as error:
            self.metrics.keys_reload["failure"] += 1
            raise ReloadFailed(f"The keys were not reloaded: {error}") from None
        for problem in ring.problems:
            _log.warning("%s, line %d: %s", path, problem.line, problem.reason)
        exposed = keyfile.warn_if_exposed(path)
        if exposed:
            _log.warning("%s", exposed)
        self._take_ring(ring)
        self.metrics.keys_reload["success"] += 1
        _log.info("%d API keys loaded from %s", len(ring), path)
        return len(ring)

    def _take_ring(self, ring: KeyRing) -> None:
        old = self._principals
        self.ring = ring
        self._principals = {
            key.key_id: Principal(key, self._window(old.get(key.key_id), key)) for key in ring.keys
        }

    def _window(self, old: Principal | None, key: Key) -> SlidingWindow:
        limit = key.rate_limit or self.settings.max_requests_per_minute
        if old is None:
            return SlidingWindow(limit=limit)
        old.window.limit = limit  # what it has admitted still counts
        return old.window

    def principal_of(self, presented: bytes) -> Principal | None:
        """Who shows the key *presented*; None when nobody does."""
        key = self.ring.look_up(presented)
        return None if key is None else self._principals[key.key_id]

    # Engine -------------------------------------------------------------------------------------

    def take_engine_status(self, status: EngineStatus) -> None:
        """Learn how the engine is: slots come and go with it."""
        if status.state is not self.engine.state:
            _log.info("engine: %s%s", status.state, f" ({status.detail})" if status.detail else "")
        self.engine = status
        if status.state is not EngineState.READY:
            self.pool.retire_idle()
        self.admission.resize(self._slots() if status.state is EngineState.READY else 0)
        if status.state not in MAY_COME and status.state is not EngineState.READY:
            for ticket in self.admission.waiting():
                ticket.on_refused(self.unavailable())

    def _slots(self) -> int:
        return self.settings.max_concurrent_requests or self.engine.slots or DEFAULT_SLOTS

    @property
    def engine_may_come(self) -> bool:
        return self.engine.state in MAY_COME

    @property
    def engine_is_ready(self) -> bool:
        return self.engine.state is EngineState.READY

    def unavailable(self) -> GatewayError:
        """Why nothing can be sent to the engine now."""
        if self.engine.state in (EngineState.STARTING, EngineState.LOADING):
            return ModelLoading(
                "The model is still loading. Try again in a moment.",
                retry_after=MODEL_LOADING_RETRY_SECONDS,
            )
        return BackendUnavailable(
            "The engine is not available right now.", retry_after=BACKEND_RETRY_SECONDS
        )

    def draining(self) -> GatewayError:
        return Draining("The server is shutting down.", retry_after=DRAINING_RETRY_SECONDS)

    # Accounts -----------------------------------------------------------------------------------

    def record(self, exchange: Exchange, address: str) -> None:
        """Count one exchange that is over, and remember its line for the access log."""
        now = self.now()
        metrics = self.metrics
        duration = now - exchange.started_at
        metrics.requests[exchange.route, exchange.method, exchange.status] += 1
        queued = first_byte = 0.0
        if exchange.queued_at:
            queued = (exchange.forwarded_at or now) - exchange.queued_at
        if exchange.first_byte_at:
            first_byte = exchange.first_byte_at - exchange.started_at
            metrics.first_bytes.observe(first_byte)
            metrics.durations.observe(duration)
            metrics.queue_waits.observe(queued)
            metrics.sent_bytes += exchange.bytes_out
        metrics.received_bytes += exchange.bytes_in
        self.access_log.pending.append(
            Record(
                now + self._wall_offset,
                exchange.request_id,
                exchange.key_id,
                address,
                exchange.method,
                exchange.path,
                exchange.status,
                exchange.bytes_in,
                exchange.bytes_out,
                queued,
                first_byte,
                duration,
                exchange.outcome,
            )
        )
        if self.is_draining:
            self.notice_idle()

    def busy(self) -> int:
        """How many exchanges are under way."""
        return sum(connection.is_busy for connection in self.connections)

    def notice_idle(self) -> None:
        if not self.busy():
            self.idle.set()

    def gauges(self) -> Gauges:
        return Gauges(
            in_flight=self.admission.running,
            queue_depth=self.admission.queued,
            slots=self.admission.slots,
            connections=len(self.connections),
            state=self.engine.state,
            states=tuple(EngineState),
            is_ready=self.engine_is_ready,
            keys_loaded=len(self.ring),
            version=__version__,
        )

    def metrics_json(self) -> bytes:
        return json.dumps(as_json(self.metrics, self.gauges()), indent=1).encode()

    def health(self) -> tuple[int, bytes]:
        """Status and JSON of ``/health``: 200 when a request would be served. Nothing secret."""
        serves = self.engine_is_ready and not self.is_draining
        status = "ok" if serves else "draining" if self.is_draining else str(self.engine.state)
        facts = {
            "status": status,
            "engine": {
                "state": str(self.engine.state),
                "since": datetime.fromtimestamp(self.engine.since, UTC).isoformat(
                    timespec="seconds"
                ),
                "detail": self.engine.detail,
            },
            "model": self.engine.model,
            "slots": {"used": self.admission.running, "total": self.admission.slots},
            "queue": {"length": self.admission.queued, "size": self.settings.max_queue_size},
            "version": __version__,
            "uptime_seconds": round(self.now() - self.started_at, 1),
        }
        return (200 if serves else 503), json.dumps(facts).encode()


def wall_now() -> float:
    """POSIX seconds. For people and for expiry, never for durations."""
    return datetime.now(UTC).timestamp()


def _request_ids() -> Iterator[str]:
    """Unique in this process by a counter, and among processes by a random prefix."""
    prefix = f"req-{os.urandom(6).hex()}"
    return (f"{prefix}-{n:08x}" for n in count(1))


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
