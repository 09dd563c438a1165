"""The gateway's own endpoints: health, metrics, usage, preflights. They never use the engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

from llama_gguf import __version__
from llama_gguf.access.authenticator import Authenticator, Principal
from llama_gguf.config.schema import RouteSettings
from llama_gguf.engines.status import HEALTH_STATUS, ChildState
from llama_gguf.form import FORM
from llama_gguf.gateway import budgets, dashboard, fleet_facts, models_list
from llama_gguf.http1 import local_response
from llama_gguf.http1.fields import find
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.request import Request
from llama_gguf.http1.routes import Kind
from llama_gguf.telemetry.formats import Format, negotiated_format
from llama_gguf.telemetry.gauges import Budgets, EngineMetric, Gauges
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.wall_clock import iso

if TYPE_CHECKING:
    from llama_gguf.gateway.services import Services


_FOR_KEYS: Final = frozenset(
    [
        Kind.RELOAD,
        Kind.USAGE,
        Kind.DASHBOARD_DATA,
        Kind.DASHBOARD_LOG,
        Kind.DASHBOARD_KEYS,
        Kind.MODELS,
    ]
)

EXPENSIVE_SECONDS: Final = 0.01
HELD_TIMES: Final = 20
"""Metrics that took ``EXPENSIVE_SECONDS`` or more of CPU to render are sent again for a multiple of
that time: scrapes, which need no key, take no more than a twentieth of the loop's time."""


def needs_key(kind: Kind, settings: RouteSettings) -> bool:
    return kind in _FOR_KEYS or (kind is Kind.METRICS and settings.metrics_auth_enabled)


def respond(
    kind: Kind, request: Request, services: Services, principal: Principal = Authenticator.ANONYMOUS
) -> LocalResponse:
    """The response to *request* for one of the gateway's own paths, except those that wait.

    Args:
        kind: of its route.
        request: its head.
        services: of the gateway.
        principal: whose key it shows, where the path ``needs_key``.

    Raises:
        ModelNotFound: it is for a model that is not served.
    """
    match kind:
        case Kind.PING:
            return LocalResponse(200)
        case Kind.HEALTH:
            return health(services)
        case Kind.METRICS:
            return _metrics(request, services)
        case Kind.USAGE:
            return dashboard.usage(principal, services)
        case Kind.MODELS:
            return models_list.respond(request, services)
        case Kind.OPENAPI:
            # Imported at the first request: the gateway starts without it.
            from llama_gguf.gateway import openapi  # noqa: PLC0415

            return openapi.response(services.reader.router, services.auth, services.routes)
        case Kind.DASHBOARD:
            needs_keys = services.auth.auth_enabled
            return dashboard.page(request.route.label, needs_keys=needs_keys)
        case Kind.DASHBOARD_DATA:
            return dashboard.data(health_facts(services), request, principal, services)
        case _:
            lines = services.reader.cors.preflight(
                request.head.fields, request.sorted_fields.origin
            )
            return LocalResponse(204, fields=lines)


def reloaded(keys: int) -> LocalResponse:
    """The response to POST /reload; *keys*: how many are loaded now."""
    return LocalResponse(200, b'{"status":"ok","keys_loaded":%d}' % keys, local_response.JSON)


def health(services: Services) -> LocalResponse:
    """200 if a request would be served, else 503. Contains nothing secret."""
    serves = (
        HEALTH_STATUS[services.fleet.status.state] == 200 and not services.connections.is_draining
    )
    return LocalResponse(
        200 if serves else 503, json.dumps(health_facts(services)).encode(), local_response.JSON
    )


def health_facts(services: Services) -> dict[str, object]:
    """The body of /health."""
    engine = services.fleet.status
    facts = dict(engine.facts)
    prompt_cache = services.spared_prompts.facts
    if engine.request_tokens:  # until then, the value that was calculated before the start
        facts["context"] = engine.request_tokens
    return {
        "status": "draining" if services.connections.is_draining else _word_for(engine.state),
        "engine": {
            "state": str(engine.state),
            "since": iso(engine.since),
            "detail": engine.detail,
            "missing_devices": list(engine.missing_devices),
            "progress": engine.progress,
            "load_seconds": engine.load_seconds,
            "last_exit": engine.last_exit,
            "restarts": sum(engine.restarts.values()),
            "version": facts.pop("engine_version", ""),
        },
        "model": {"name": engine.model, **facts},
        **({"replicas": fleet_facts.facts(services)} if services.fleet.has_choice else {}),
        **({} if prompt_cache is None else {"prompt_cache": prompt_cache}),
        **({} if services.shared is None else {"shared_limits": services.shared.facts()}),
        "slots": {
            "used": services.fleet.admission.running,
            "total": services.fleet.admission.slots,
        },
        "queue": {"length": services.fleet.admission.queued, "size": services.queue.max_queue_size},
        "version": __version__,
        "form": FORM,
        "uptime_seconds": round(services.clock.now() - services.clock.started_at, 1),
    }


def _word_for(state: ChildState) -> str:
    return "ok" if state is ChildState.READY else str(state)


def gauges(services: Services, found: tuple[Budgets, Budgets] | None = None) -> Gauges:
    """What the metrics show in addition to counters; *found*: the budgets, if known already."""
    if found is None:
        found = budgets.gauges(services, services.authenticator.budgets.key_ids())
    token_budgets, engine_budgets = found
    return Gauges(
        in_flight=services.fleet.admission.running,
        queue_depth=services.fleet.admission.queued,
        slots=services.fleet.admission.slots,
        connections=len(services.connections),
        body_memory=services.body_memory.used,
        state=services.fleet.status.state,
        states=tuple(ChildState),
        is_ready=services.fleet.is_ready,
        restarts=services.fleet.status.restarts,
        is_degraded=bool(services.fleet.status.missing_devices),
        load_seconds=services.fleet.status.load_seconds,
        keys_loaded=len(services.authenticator.ring),
        next_expiry=services.authenticator.next_expiry(services.clock.wall),
        version=__version__,
        python=sys.version.split()[0],
        uptime=round(services.clock.now() - services.clock.started_at, 3),
        token_budgets=token_budgets,
        engine_budgets=engine_budgets,
        replicas=fleet_facts.gauges(services),
        session_moves=dict(services.fleet.moves),  # a thread may read it
        prompt_cache=services.spared_prompts.facts,
        shared_limits=None if services.shared is None else services.shared.gauges(),
    )


def _metrics(request: Request, services: Services) -> LocalResponse:
    """JSON or Prometheus text; the last one again while rendering is too expensive."""
    wanted = metrics_format(request)
    made = held_metrics(services, wanted)
    if made is not None:
        return made
    render = renderer(wanted)
    begin = time.thread_time()
    services.recorder.settle()
    engine = services.engine_reader.latest
    made = LocalResponse(200, *render(services.metrics, gauges(services), engine, wanted, None))
    hold_metrics(services, wanted, made, seconds=time.thread_time() - begin)
    return made


def metrics_format(request: Request) -> Format:
    """The format that *request* accepts."""
    head = request.head
    wanted = negotiated_format(find(head.fields, b"accept") or b"", head.target.partition(b"?")[2])
    if wanted is Format.JSON and head.path != b"/metrics":
        return Format.PROMETHEUS
    return wanted


def held_metrics(services: Services, wanted: Format) -> LocalResponse | None:
    """The last metrics in this format, while they are sent again."""
    made, until = services.scrapes.get(wanted, (None, 0.0))
    return made if services.clock.now() < until else None


def hold_metrics(
    services: Services, wanted: Format, made: LocalResponse, *, seconds: float
) -> None:
    """Send *made* again for a while, if it took *seconds* of CPU and that is much."""
    if seconds >= EXPENSIVE_SECONDS:
        services.scrapes[wanted] = made, services.clock.now() + HELD_TIMES * seconds


_Pause = Callable[[], None]
_Render = Callable[
    [Metrics, Gauges, Iterable[EngineMetric], Format, _Pause | None], tuple[bytes, bytes]
]


_RENDERERS: Final[Mapping[Format, str]] = {
    Format.JSON: "llama_gguf.telemetry.metrics_json",
    Format.PROMETHEUS: "llama_gguf.telemetry.exposition",
    Format.OPENMETRICS: "llama_gguf.telemetry.exposition",
}
"""Modules, imported at the first scrape: the gateway starts without them."""


def has_renderer(wanted: Format) -> bool:
    """Whether what renders the metrics in this format is imported, which may take 30 ms."""
    return _RENDERERS[wanted] in sys.modules


def renderer(wanted: Format) -> _Render:
    """Renders the metrics in this format."""
    render: _Render = import_module(_RENDERERS[wanted]).render
    return render
