"""What a gateway holds, seen from outside, and waiting until it holds no more than before."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.soak.client import Client
from tests.support.fakes import request
from tests.wire.conftest import GatewayProcess

PATIENCE: Final = 15.0
"""Seconds after which what has not come is taken for never coming."""

Connect = Callable[[], Awaitable[Client]]


class Wrong(Exception):
    """Something is not what it has to be."""


@dataclass(frozen=True)
class Held:
    """What a process holds, as the kernel counts it."""

    descriptors: int
    threads: int
    resident_bytes: int

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.threads} threads"

    @classmethod
    def by(cls, gateway: GatewayProcess) -> Held:
        proc = Path(f"/proc/{gateway.process.pid}")
        threads = re.search(r"Threads:\s+(\d+)", (proc / "status").read_text())
        assert threads
        return cls(sum(1 for _ in (proc / "fd").iterdir()), int(threads[1]), gateway.resident_bytes)

    @classmethod
    async def least(cls, gateway: GatewayProcess) -> Held:
        """With its access log open, and at a moment without a probe of the engine."""
        log = gateway.folder / "logs" / "api_access.log"
        await eventually(log.exists, "the access log is there")
        looks = []
        for _ in range(20):
            looks.append(cls.by(gateway))
            await asyncio.sleep(0.01)
        return min(looks, key=lambda held: held.descriptors)

    def has_no_more_than(self, start: Held) -> bool | str:
        """True, or what is held."""
        is_back = self.descriptors <= start.descriptors and self.threads <= start.threads
        return is_back or str(self)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Poll *condition* until it is true.

    Raises:
        Wrong: it never is.
    """
    last: object = "no answer"
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while True:
                found = condition()
                last = await found if asyncio.iscoroutine(found) else found
                if last is True:
                    return
                await asyncio.sleep(0.02)
    raise Wrong(f"it never happened that {what}: {last}")


async def metrics(connect: Connect) -> dict[str, Any]:
    """What the gateway counts, asked on a connection of its own."""
    client = await connect()
    try:
        client.send(request("GET", "/metrics", key=None))
        answer = await client.answer()
    finally:
        await client.leave()
    assert answer
    facts: dict[str, Any] = json.loads(answer.body)
    return facts


async def in_use(connect: Connect) -> dict[str, int]:
    """Slots, places in the queue, bytes of bodies and connections that the gateway counts."""
    facts = await metrics(connect)
    return {
        "slots used": facts["llama_gguf_requests_in_flight"],
        "queue": facts["llama_gguf_queue_depth"],
        "body memory": facts["llama_gguf_body_memory_bytes"],
        "other clients": facts["llama_gguf_connections"] - 1,
    }
