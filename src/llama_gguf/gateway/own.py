"""What the gateway answers by itself: health, metrics, reload, preflight. Never asks the engine."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from llama_gguf import __version__
from llama_gguf.core import replies
from llama_gguf.core.engine import HEALTH_STATUS, EngineState
from llama_gguf.core.fields import find
from llama_gguf.core.messages import Request
from llama_gguf.core.metrics import Gauges, as_json
from llama_gguf.core.replies import OwnAnswer
from llama_gguf.core.routes import Kind
from llama_gguf.core.settings import Settings

if TYPE_CHECKING:
    from llama_gguf.gateway.shared import Shared


def needs_key(kind: Kind, settings: Settings) -> bool:
    return kind is Kind.RELOAD or (kind is Kind.METRICS and settings.metrics_auth_enabled)


def answer(kind: Kind, request: Request, shared: Shared) -> OwnAnswer:
    """The answer to *request* for one of our own paths, but for /reload, which takes a while."""
    match kind:
        case Kind.PING:
            return OwnAnswer(200)
        case Kind.HEALTH:
            return health(shared)
        case Kind.METRICS:
            return _metrics(request, shared)
        case _:
            lines = shared.cors.preflight(request.head.fields, request.read.origin)
            return OwnAnswer(204, fields=lines)


def reloaded(keys: int) -> OwnAnswer:
    """To POST /reload, when there are that many *keys* now."""
    return OwnAnswer(200, b'{"status":"ok","keys_loaded":%d}' % keys, replies.JSON)


def health(shared: Shared) -> OwnAnswer:
    """200 when a request would be served, else 503. Nothing secret."""
    engine = shared.engine
    serves = HEALTH_STATUS[engine.state] == 200 and not shared.is_draining
    facts = {
        "status": "draining" if shared.is_draining else _word_for(engine.state),
        "engine": {
            "state": str(engine.state),
            "since": datetime.fromtimestamp(engine.since, UTC).isoformat(timespec="seconds"),
            "detail": engine.detail,
            "progress": engine.progress,
        },
        "model": engine.model,
        "slots": {"used": shared.admission.running, "total": shared.admission.slots},
        "queue": {"length": shared.admission.queued, "size": shared.settings.max_queue_size},
        "version": __version__,
        "uptime_seconds": round(shared.now() - shared.started_at, 1),
    }
    return OwnAnswer(200 if serves else 503, json.dumps(facts).encode(), replies.JSON)


def _word_for(state: EngineState) -> str:
    return "ok" if state is EngineState.READY else str(state)


def gauges(shared: Shared) -> Gauges:
    return Gauges(
        in_flight=shared.admission.running,
        queue_depth=shared.admission.queued,
        slots=shared.admission.slots,
        connections=len(shared.connections),
        state=shared.engine.state,
        states=tuple(EngineState),
        is_ready=shared.engine_is_ready,
        keys_loaded=len(shared.principals.ring),
        version=__version__,
    )


def _metrics(request: Request, shared: Shared) -> OwnAnswer:
    """JSON, or what a scraper asks for."""
    accept = (find(request.head.fields, b"accept") or b"").decode("latin-1")
    query = request.head.target.partition(b"?")[2].split(b"&")
    if b"format=prometheus" in query or "openmetrics" in accept or "text/plain" in accept:
        # Imported at the first scrape: the gateway starts without it.
        from llama_gguf.gateway.exposition import render  # noqa: PLC0415

        return OwnAnswer(200, *render(shared.metrics, gauges(shared), accept))
    body = json.dumps(as_json(shared.metrics, gauges(shared)), indent=1).encode()
    return OwnAnswer(200, body, replies.JSON)
