"""Responses that the event loop must not make in one step, in which no event would be forwarded.

For 10,000 keys, /usage and /metrics need as much as half a second of CPU. What reads the gateway's
state is done on the loop, a few keys at a time; the text of the metrics is made from a copy, on a
thread that pauses. The first /metrics is made there too, since it imports what renders it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from llama_gguf.gateway import budgets, dashboard, endpoints
from llama_gguf.http1 import local_response
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import Kind
from llama_gguf.net.threads import pause, run_detached
from llama_gguf.telemetry.formats import Format, paced
from llama_gguf.telemetry.gauges import Budgets, Gauges
from llama_gguf.telemetry.metrics import Metrics

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
    used = services.shown_usage.keys_used
    has_many = used > MANY_KEYS
    if kind is Kind.METRICS:
        wanted = endpoints.metrics_format(request)
        # Another rendering may be importing what this one needs.
        is_ready = endpoints.has_renderer(wanted) and not services.renderings
        return partial(_metrics, request, services) if has_many or not is_ready else None
    if not services.authenticator.is_admin(principal):
        return None  # a response about one key
    if kind is Kind.DASHBOARD_DATA and used > KEYS_PER_STEP:
        return partial(_data, request, principal, services)
    return partial(_usage, principal, services) if kind is Kind.USAGE and has_many else None


def _steps(key_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(key_ids), KEYS_PER_STEP):
        yield key_ids[start : start + KEYS_PER_STEP]


async def _usage(principal: Principal, services: Services) -> LocalResponse:
    services.recorder.settle()
    facts = dashboard.usage_facts(principal, services)
    return await _with_keys(facts, dashboard.usage_keys(principal, services), services)


async def _data(request: Request, principal: Principal, services: Services) -> LocalResponse:
    health = endpoints.health_facts(services)
    facts = dashboard.data_facts(health, request, principal, services)
    await asyncio.sleep(0)
    key_ids = dashboard.usage_keys(principal, services, dashboard.MAX_KEYS_SHOWN)
    return await _with_keys(facts, key_ids, services)


async def _with_keys(
    facts: Mapping[str, object], key_ids: Sequence[str], services: Services
) -> LocalResponse:
    """*facts* and the usage of *key_ids* as JSON. No step takes long, nor does the last one."""
    between = json.dumps(facts)[:-1] + ', "keys": [\n'
    parts: list[bytes] = []
    for step in _steps(key_ids):
        rows = [json.dumps(dashboard.usage_of(key_id, services)) for key_id in step]
        parts += between.encode(), ",\n".join(rows).encode()
        between = ",\n"
        await asyncio.sleep(0)
    body = b"".join((*parts, b"\n]}\n"))
    await asyncio.sleep(0)
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
    read = [await _read(services)]
    engine = services.engine_reader.latest

    def render() -> tuple[LocalResponse, float]:
        begin = time.thread_time()
        gauges, metrics = read.pop()
        # It makes many objects and no cycles; to look for some takes 80 ms with 10,000 keys.
        gc.disable()
        try:
            body, kind = endpoints.renderer(wanted)(metrics, gauges, engine, wanted, pause)
        finally:
            gc.enable()
        # Freed here and in steps: at once, that takes 10 ms with many keys.
        for mapping in (gauges.token_budgets, gauges.engine_budgets, metrics.tokens):
            for _ in paced(range(len(mapping)), pause):
                mapping.popitem()
        return LocalResponse(200, body, kind), time.thread_time() - begin

    made, duration = await run_detached(render)
    endpoints.hold_metrics(services, wanted, made, seconds=duration)
    return made


async def _read(services: Services) -> tuple[Gauges, Metrics]:
    """What the metrics show, as copies, which a thread can use."""
    tokens: Budgets = {}
    seconds: Budgets = {}
    for step in _steps(services.authenticator.budgets.key_ids()):
        some_tokens, some_seconds = budgets.gauges(services, step)
        tokens.update(some_tokens)
        seconds.update(some_seconds)
        await asyncio.sleep(0)
    services.recorder.settle()
    return endpoints.gauges(services, (tokens, seconds)), services.metrics.snapshot()
