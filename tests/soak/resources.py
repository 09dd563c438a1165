"""The resources that a gateway uses, seen from outside, and waiting until they are released."""

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
from tests.support.gateways import GatewayProcess
from tests.support.messages import request

PATIENCE: Final = 15.0
"""Timeout in seconds for everything that must happen."""

Connect = Callable[[], Awaitable[Client]]


class Wrong(Exception):
    """The gateway behaved incorrectly."""


@dataclass(frozen=True)
class Held:
    """A process's resources, as counted by the kernel."""

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
        """The minimum of several samples, with the access log open: a probe opens a connection."""
        log = gateway.folder / "logs" / "api_access.log"
        await eventually(log.exists, "the access log is there")
        samples = []
        for _ in range(20):
            samples.append(cls.by(gateway))
            await asyncio.sleep(0.01)
        return min(samples, key=lambda held: held.descriptors)

    def has_no_more_than(self, start: Held) -> bool | str:
        """True, or what is in use."""
        is_back = self.descriptors <= start.descriptors and self.threads <= start.threads
        return is_back or str(self)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Poll *condition* until it is true.

    Raises:
        Wrong: it is not, within ``PATIENCE``.
    """
    last: object = "no response"
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
    """The gateway's metrics, read on a separate connection."""
    client = await connect()
    try:
        client.send(request("GET", "/metrics", key=None))
        response = await client.read_response()
    finally:
        await client.disconnect()
    assert response
    facts: dict[str, Any] = json.loads(response.body)
    return facts


async def in_use(connect: Connect) -> dict[str, int]:
    """Slots, queue places, body memory and connections in use, as the gateway counts them."""
    facts = await metrics(connect)
    return {
        "slots used": facts["llama_gguf_requests_in_flight"],
        "queue": facts["llama_gguf_queue_depth"],
        "body memory": facts["llama_gguf_body_memory_bytes"],
        "other clients": facts["llama_gguf_connections"] - 1,
    }
