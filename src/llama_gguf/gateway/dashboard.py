"""The dashboard: three static files, and the data that they show.

The page needs no key, since it contains nothing; its numbers need one. Nothing in it comes from
elsewhere, and its policy lets nothing else in: no inline code, no frame around it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final

from llama_gguf.gateway import budgets
from llama_gguf.http1 import local_response
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import OPERATIONS
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.timeseries import STEP_SECONDS, Reading

if TYPE_CHECKING:
    from llama_gguf.access.authenticator import Principal
    from llama_gguf.gateway.services import Services

_TYPES: Final = {
    "dashboard.html": b"text/html; charset=utf-8",
    "dashboard.css": b"text/css; charset=utf-8",
    "dashboard.js": b"text/javascript; charset=utf-8",
}
# Source: Content Security Policy Level 3, https://www.w3.org/TR/CSP3/
_FIELDS: Final = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'\r\n",
    b"X-Content-Type-Options: nosniff\r\n",
    b"Referrer-Policy: no-referrer\r\n",
    b"Cache-Control: no-cache\r\n",
)
_NOT_STORED: Final = (b"Cache-Control: no-store\r\n",)


@cache
def page(path: str, *, needs_keys: bool = True) -> LocalResponse:
    """The file at *path*; read once."""
    # Imported at the first request: it loads modules of 1.6 MB that nothing else needs.
    from importlib import resources  # noqa: PLC0415

    name = path.removeprefix("/") if "." in path else "dashboard.html"
    body = resources.files(__package__).joinpath("page", name).read_bytes()
    if not needs_keys:
        body = body.replace(b'data-keys="needed"', b'data-keys="none"')
    return LocalResponse(200, body, _TYPES[name], _FIELDS)


def data(health: Mapping[str, object], principal: Principal, services: Services) -> LocalResponse:
    """What the page draws: the present state, the last minutes, and the usage of keys.

    Args:
        health: the facts of /health.
        principal: whose key the request shows.
        services: of the gateway.
    """
    facts = {
        **health,
        "recent": services.history.recent(),
        "history": {"step_seconds": STEP_SECONDS, **services.history.series()},
        "errors": services.history.errors(),
        **_usage(principal, services),
    }
    return LocalResponse(200, json.dumps(facts).encode(), local_response.JSON, _NOT_STORED)


def usage(principal: Principal, services: Services) -> LocalResponse:
    """The usage of *principal*; for an administrator, that of every key."""
    body = json.dumps(_usage(principal, services), indent=1).encode()
    return LocalResponse(200, body, local_response.JSON, _NOT_STORED)


def _usage(principal: Principal, services: Services) -> dict[str, object]:
    services.recorder.settle()
    totals, sees_all = services.usage, services.authenticator.is_admin(principal)
    own = totals.view(principal.key_id, services.clock.wall)
    views = totals.views(services.clock.wall) if sees_all else []
    if all(view["key_id"] != principal.key_id for view in views):
        views.insert(0, own)
    for view in views:
        view["budgets"] = budgets.view(services, str(view["key_id"]))
    return {
        "key_id": principal.key_id,
        "sees_all": sees_all,
        "usage_since": datetime.fromtimestamp(totals.since, UTC).isoformat(timespec="seconds"),
        "keys": views,
    }


def take_reading(services: Services, now: float) -> None:
    """Add a step to the history, when one is due."""
    if services.history.is_due(now):
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
    tokens = metrics.tokens.items()
    return Reading(
        requests=sum(n for (route, _, _), n in metrics.requests.items() if route in OPERATIONS),
        prompt_tokens=sum(n for (_, kind), n in tokens if kind == "prompt"),
        completion_tokens=sum(n for (_, kind), n in tokens if kind == "completion"),
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
