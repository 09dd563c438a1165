"""Facts that the server reports about itself: model, engine, slots, queue. All are optional.

Sources are ``/v1/models`` (every OpenAI-compatible server), llama.cpp's ``/props``, and our
gateway's ``/health`` and ``/metrics``. Never ``/slots``, which wakes a sleeping engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llama_gguf_bench.connection import ConnectionLost, Connections

PATIENCE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.5
_QUEUE_WAIT: Final = "llama_gguf_queue_wait_seconds"


class Whole:
    """A sink that stores status and body."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def begin(self, status: int) -> None:
        self.status = status

    def feed(self, data: bytes, now: float) -> None:
        self.body += data

    def end(self, now: float) -> None:
        pass


@dataclass(slots=True)
class Server:
    """Facts about the server; empty where it did not report them."""

    models: tuple[str, ...] = ()
    engine: str = ""
    """llama.cpp's build."""
    gateway: str = ""
    """The version of our gateway, if there is one."""
    slots: int | None = None
    context: int | None = None
    """The size of a slot's context, in tokens."""
    model_path: str = ""
    is_llama_cpp: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    """Facts about the model, from the server or the file's header."""

    def as_json(self) -> dict[str, Any]:
        # Only the file's name: its path may contain private facts about the server's machine.
        return {
            "models": list(self.models),
            "engine": self.engine,
            "gateway": self.gateway,
            "slots": self.slots,
            "context": self.context,
        }


async def get(connections: Connections, path: str) -> Mapping[str, Any]:
    """The JSON object at *path*; empty if there is none, for any reason."""
    sink = Whole()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await connections.exchange(connections.target.request("GET", path), sink)
        document = json.loads(sink.body) if sink.status in (200, 503) else {}
    except (OSError, TimeoutError, ConnectionLost, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


async def look(connections: Connections) -> Server:
    """Request all facts that do not change during a run."""
    models, props, health = [
        await get(connections, path) for path in ("/v1/models", "/props", "/health")
    ]
    server = Server()
    _read_models(server, models)
    _read_props(server, props)
    if isinstance(version := health.get("version"), str) and "slots" in health:
        server.gateway = version
        server.slots = _slots(health)[1] or server.slots
    return server


def _read_models(server: Server, document: Mapping[str, Any]) -> None:
    rows = document.get("data")
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    server.models = tuple(str(row["id"]) for row in found if row.get("id"))
    if found:
        server.is_llama_cpp = found[0].get("owned_by") == "llamacpp"
        meta = found[0].get("meta")
        server.model = dict(meta) if isinstance(meta, dict) else {}


def _read_props(server: Server, document: Mapping[str, Any]) -> None:
    server.engine = str(document.get("build_info") or "")
    server.is_llama_cpp = server.is_llama_cpp or bool(server.engine)
    server.model_path = str(document.get("model_path") or "")
    slots, defaults = document.get("total_slots"), document.get("default_generation_settings")
    server.slots = slots if isinstance(slots, int) else None
    context = defaults.get("n_ctx") if isinstance(defaults, dict) else None
    server.context = context if isinstance(context, int) else None


def _slots(health: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Slots in use and in total, from our gateway's /health."""
    document = health.get("slots")
    if not isinstance(document, dict):
        return None, None
    used, total = document.get("used"), document.get("total")
    return used if isinstance(used, int) else None, total if isinstance(total, int) else None


# During a load ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """Reads our gateway's slots and queue twice a second, without a request to the engine.

    Args:
        connections: to the gateway; separate from those of the load.
    """

    connections: Connections
    used: list[int] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    _before: Mapping[str, Any] = field(default_factory=dict)

    async def begin(self) -> None:
        self._before = await get(self.connections, "/metrics")

    async def run(self) -> None:
        while True:
            health = await get(self.connections, "/health")
            used, _ = _slots(health)
            queue = health.get("queue")
            if used is not None and isinstance(queue, dict):
                self.used.append(used)
                self.queued.append(int(queue.get("length") or 0))
            await asyncio.sleep(LOOK_SECONDS)

    async def end(self) -> dict[str, Any]:
        """The values since the beginning."""
        after = await get(self.connections, "/metrics")
        found: dict[str, Any] = {}
        if self.used:
            found["slots_used_mean"] = sum(self.used) / len(self.used)
            found["queue_max"] = max(self.queued)
        wait = queue_wait(self._before.get(_QUEUE_WAIT), after.get(_QUEUE_WAIT))
        return found | wait


def queue_wait(before: Any, after: Any) -> dict[str, float]:
    """The mean time in the gateway's queue between two readings of its histogram, in seconds."""
    try:
        count = after["count"] - before["count"]
        total = after["sum"] - before["sum"]
    except (TypeError, KeyError):
        return {}
    return {"queue_wait_mean_seconds": total / count} if count > 0 else {}


def model_name(server: Server, wanted: str) -> str:
    """The ``model`` of requests: the option's value, or else the server's first model."""
    return wanted or next(iter(server.models), "default")


def calibrated(responses: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """The number of prompt tokens in each response, if the server reports it."""
    found: list[int | None] = []
    for response in responses:
        usage = response.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        found.append(count if isinstance(count, int) else None)
    return found
