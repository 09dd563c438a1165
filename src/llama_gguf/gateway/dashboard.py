"""The dashboard: static files, and the data that they show.

The page needs no key, since it contains nothing; its numbers need one. Nothing in it comes from
elsewhere, and its policy lets nothing else in: no inline code, no frame around it. What only
administrators may do is in ``dashboard_admin.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from llama_gguf.gateway import budgets, fleet_facts
from llama_gguf.http1 import local_response
from llama_gguf.http1.fields import find
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import OPERATIONS, PAGE_FILES
from llama_gguf.telemetry.engine_metrics import PREFIX
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.timeseries import DEFAULT_RANGE, RANGES, RECENT_SECONDS, Reading
from llama_gguf.wall_clock import iso

if TYPE_CHECKING:
    from llama_gguf.access.authenticator import Principal
    from llama_gguf.gateway.services import Services
    from llama_gguf.http1.request import Request

_HTML: Final = b"text/html; charset=utf-8"
_PAGE: Final = "dashboard.html"
_ICON: Final = "dashboard/icon.svg"
# Source: Content Security Policy Level 3, https://www.w3.org/TR/CSP3/
_FIELDS: Final = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'\r\n",
    b"X-Content-Type-Options: nosniff\r\n",
    b"Referrer-Policy: no-referrer\r\n",
    b"Cache-Control: no-cache\r\n",
)
_RANGE: Final = rb"(?:^|&)range=([0-9]{1,6})(?:&|$)"
NOT_STORED: Final = (b"Cache-Control: no-store\r\n",)
MAX_KEYS_SHOWN: Final = 200
"""It bounds what a page that is open fetches every two seconds, and the time that this takes."""


@cache
def page(path: str, *, needs_keys: bool = True) -> LocalResponse:
    """The file at *path*; read once."""
    # Imported at the first request: it loads modules of 1.6 MB that nothing else needs.
    from importlib import resources  # noqa: PLC0415

    name = {"/dashboard": _PAGE, "/favicon.ico": _ICON}.get(path) or path.removeprefix("/")
    file = name.removeprefix("dashboard/")
    body = resources.files(__package__).joinpath("page", file).read_bytes()
    if not needs_keys:
        body = body.replace(b'data-keys="needed"', b'data-keys="none"')
    return LocalResponse(200, body, _HTML if name == _PAGE else PAGE_FILES[name], _FIELDS)


def is_wanted(request: Request) -> bool:
    """Whether *request* is that of a browser which opens a page."""
    return b"text/html" in (find(request.head.fields, b"accept") or b"").lower()


def redirection() -> LocalResponse:
    """From ``/``. The location is relative, so that it is right below a path of a proxy, too."""
    fields = (b"Location: dashboard\r\n", b"Vary: Accept\r\n", b"Cache-Control: no-cache\r\n")
    return LocalResponse(302, fields=fields)


def data(
    health: Mapping[str, object], request: Request, principal: Principal, services: Services
) -> LocalResponse:
    """What the page draws: ``data_facts``, and the usage of keys."""
    facts = data_facts(health, request, principal, services)
    facts["keys"] = _usage_of_keys(principal, services, MAX_KEYS_SHOWN)
    return LocalResponse(200, json.dumps(facts).encode(), local_response.JSON, NOT_STORED)


def data_facts(
    health: Mapping[str, object], request: Request, principal: Principal, services: Services
) -> dict[str, object]:
    """The present state, the last minutes, and the facts of /usage but those of each key.

    Args:
        health: the facts of /health.
        request: its query may have the ``range`` of the charts, in seconds.
        principal: whose key it shows.
        services: of the gateway.
    """
    services.recorder.settle()
    seconds = _range_in(request.head.target)
    history, sees_all = services.history, services.authenticator.is_admin(principal)
    key_id = None if sees_all or not services.auth.auth_enabled else principal.key_id
    facts: dict[str, object] = {
        **health,
        "now": round(services.clock.steady(), 1),
        "recent": history.recent(),
        "history": {
            "range_seconds": seconds,
            "step_seconds": RANGES[seconds],
            **history.series(seconds),
        },
        "ranges": list(RANGES),
        "errors": history.errors(seconds),
        "events": history.events(seconds),
        "requests": services.recent.view(key_id),
        "replicas": _replicas(services),
        "gpus": services.gpus.view(services.clock.now()),
        "engine_memory": _engine_memory(services),
        **usage_facts(principal, services),
    }
    if sees_all:
        facts["last_advice"] = services.fleet.status.last_advice
    return facts


def _range_in(target: bytes) -> int:
    match = re.search(_RANGE, target.partition(b"?")[2])
    seconds = int(match[1]) if match else DEFAULT_RANGE
    return seconds if seconds in RANGES else DEFAULT_RANGE


def _replicas(services: Services) -> list[dict[str, object]]:
    """The engines, each with its present work; what is not known of one is None."""
    if services.fleet.has_choice:
        return [{**facts, "slots_busy": facts["running"]} for facts in fleet_facts.facts(services)]
    return [
        {
            "replica": replica.label,
            "state": str(replica.tracker.status.state),
            "detail": replica.tracker.status.detail,
            "slots": replica.slots.total,
            "slots_busy": replica.slots.in_use,
            "tokens_per_second": services.history.recent()["completion_tokens_per_second"],
            "cached_ratio": services.recent.cached_ratio(services.clock.now() - RECENT_SECONDS),
        }
        for replica in services.fleet.replicas.values()
    ]


def _engine_memory(services: Services) -> list[dict[str, object]]:
    """What the engine's own metrics say about its KV cache: some versions have them."""
    return [
        {"name": metric.name.removeprefix(PREFIX), "value": metric.value}
        for metric in services.engine_reader.latest
        if "kv_cache" in metric.name
    ]


def usage(principal: Principal, services: Services) -> LocalResponse:
    """The usage of *principal*; for an administrator, that of every key."""
    services.recorder.settle()
    facts = {**usage_facts(principal, services), "keys": _usage_of_keys(principal, services)}
    body = json.dumps(facts, indent=1).encode()
    return LocalResponse(200, body, local_response.JSON, NOT_STORED)


def _usage_of_keys(
    principal: Principal, services: Services, at_most: int | None = None
) -> list[dict[str, object]]:
    return [usage_of(key_id, services) for key_id in usage_keys(principal, services, at_most)]


def usage_facts(principal: Principal, services: Services) -> dict[str, object]:
    """The facts of /usage but those of each key."""
    totals = services.shown_usage
    return {
        "key_id": principal.key_id,
        "sees_all": services.authenticator.is_admin(principal),
        "usage_since": iso(totals.since),
        "keys_used": totals.keys_used,
    }


def usage_keys(principal: Principal, services: Services, at_most: int | None = None) -> list[str]:
    """The keys whose usage *principal* sees, sorted; its own first if that was not used.

    Args:
        principal: of the request.
        services: of the gateway.
        at_most: as many of the other keys: those that were used last.
    """
    used = (
        services.shown_usage.key_ids(at_most) if services.authenticator.is_admin(principal) else []
    )
    return used if principal.key_id in used else [principal.key_id, *used]


def usage_of(key_id: str, services: Services) -> dict[str, object]:
    """What one key has used, and its limits."""
    return {
        **services.shown_usage.view(key_id, services.clock.wall),
        "budgets": budgets.view(services, key_id),
        "requests_per_minute": _rate(services, key_id),
    }


def _rate(services: Services, key_id: str) -> dict[str, int] | None:
    """The limit of a key's requests; None if it has none."""
    principal = services.authenticator.named(key_id)
    if principal is None or principal.limiter is None:
        return None
    limit, remaining = principal.limiter.limit, principal.limiter.remaining(services.clock.now())
    return {"limit": limit, "used": limit - remaining, "remaining": remaining}


def take_reading(services: Services, now: float) -> None:
    """Add what has happened to the history, when that is due.

    Args:
        services: of the gateway.
        now: on its clock.
    """
    now += services.clock.steady_offset
    if services.history.is_due(now):
        services.event_watch.look(services.history, now)
        services.recorder.settle()
        metrics = services.metrics
        admission = services.fleet.admission
        services.history.take(
            _reading(
                metrics,
                running=admission.running,
                waiting=admission.queued,
            ),
            now,
        )
        metrics.latest_first_tokens.clear()


def _reading(metrics: Metrics, *, running: int, waiting: int) -> Reading:
    return Reading(
        requests=sum(n for (route, _, _), n in metrics.requests.items() if route in OPERATIONS),
        prompt_tokens=metrics.tokens_of_all["prompt"],
        completion_tokens=metrics.tokens_of_all["completion"],
        errors={
            **metrics.rejections,
            **{f"client_left_{phase}": n for phase, n in metrics.client_disconnects.items()},
            "response_broken_off": metrics.backend_failures["broken_off"]
            - metrics.replays["broken_off"],
            "engine_error": metrics.backend_failures["engine_error"],
        },
        running=running,
        waiting=waiting,
        first_tokens=tuple(metrics.latest_first_tokens),
    )
