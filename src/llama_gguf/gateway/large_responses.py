"""Responses about many keys, which the event loop must not make in one step.

For 10,000 keys, /usage and /metrics need as much as half a second of CPU, in which no event of any
stream would be forwarded. What reads the gateway's state is done on the loop, a few keys at a time;
the text of the metrics is made from a copy, on a thread that pauses.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from llama_gguf.gateway import budgets, dashboard, endpoints
from llama_gguf.http1 import local_response
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import Kind
from llama_gguf.net.threads import pause, run_detached
from llama_gguf.telemetry.formats import Format
from llama_gguf.telemetry.gauges import Budgets

if TYPE_CHECKING:
    from llama_gguf.access.authenticator import Principal
    from llama_gguf.gateway.services import Services
    from llama_gguf.http1.request import Request

MANY_KEYS: Final = 200
"""With fewer, a response takes less than 10 ms."""
KEYS_PER_STEP: Final = 32
"""About 1 ms."""


def of(
    kind: Kind, request: Request, services: Services, principal: Principal
) -> Callable[[], Coroutine[object, object, LocalResponse]] | None:
    """The work of the response to *request*, if it is large."""
    if services.shown_usage.keys_used <= MANY_KEYS:
        return None
    if kind is Kind.USAGE and services.authenticator.is_admin(principal):
        return partial(_usage, principal, services)
    return partial(_metrics, request, services) if kind is Kind.METRICS else None


def _steps(key_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(key_ids), KEYS_PER_STEP):
        yield key_ids[start : start + KEYS_PER_STEP]


async def _usage(principal: Principal, services: Services) -> LocalResponse:
    services.recorder.settle()
    facts = json.dumps(dashboard.usage_facts(principal, services))
    parts: list[bytes] = []
    for step in _steps(dashboard.usage_keys(principal, services)):
        rows = [json.dumps(dashboard.usage_of(key_id, services)) for key_id in step]
        parts.append(",\n".join(rows).encode())  # here, since the whole takes milliseconds
        await asyncio.sleep(0)
    body = b'%b, "keys": [\n%b\n]}\n' % (facts[:-1].encode(), b",\n".join(parts))
    return LocalResponse(200, body, local_response.JSON, dashboard.NOT_STORED)


async def _metrics(request: Request, services: Services) -> LocalResponse:
    """As ``endpoints.respond``; requests meanwhile share one rendering."""
    wanted = endpoints.metrics_format(request)
    made = endpoints.held_metrics(services, wanted)
    if made is not None:
        return made
    rendering = services.renderings.get(wanted)
    if rendering is None:
        rendering = services.loop.create_task(_render(services, wanted), name="metrics")
        services.renderings[wanted] = rendering
        rendering.add_done_callback(lambda _: services.renderings.pop(wanted))
    return await asyncio.shield(rendering)


async def _render(services: Services, wanted: Format) -> LocalResponse:
    tokens: dict[tuple[str, str], tuple[float, float, float]] = {}
    seconds: dict[tuple[str, str], tuple[float, float, float]] = {}
    for step in _steps(services.authenticator.budgets.key_ids()):
        some_tokens, some_seconds = budgets.gauges(services, step)
        tokens.update(some_tokens)
        seconds.update(some_seconds)
        await asyncio.sleep(0)
    found: tuple[Budgets, Budgets] = tokens, seconds
    services.recorder.settle()
    gauges, metrics = endpoints.gauges(services, found), services.metrics.snapshot()
    engine = services.engine_reader.latest

    def render() -> tuple[LocalResponse, float]:
        begin = time.thread_time()
        body, kind = endpoints.renderer(wanted)(metrics, gauges, engine, wanted, pause)
        return LocalResponse(200, body, kind), time.thread_time() - begin

    made, duration = await run_detached(render)
    endpoints.hold_metrics(services, wanted, made, seconds=duration)
    return made
