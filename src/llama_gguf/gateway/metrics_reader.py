"""Reads llama-server's own metrics, so that one scrape returns both.

Only while requests are in flight, since reading may wake an engine that is asleep; otherwise the
last counters are served. A scrape never reads the engine: its rates are reset by each read, so it
has one reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from llama_gguf.engines.probe import Probe
from llama_gguf.events import EventLog
from llama_gguf.telemetry.engine_metrics import parse
from llama_gguf.telemetry.gauges import EngineMetric
from llama_gguf.values import Value

_log: Final = EventLog(__name__)

EVERY_SECONDS: Final = 5.0
"""If more than once a second, llama-server would no longer notice disconnected clients
(docs/adr/0010-a-departed-client-and-llama-server.md).
"""


class Readable(Value):
    """One replica.

    Args:
        probe: reads from it.
        label: of its metrics; empty if it is the only one.
        is_busy: whether it is awake and has requests.
    """

    probe: Probe
    label: str
    is_busy: bool


class EngineReader:
    """Of one gateway.

    Args:
        replicas: returns those that can be read now.
    """

    def __init__(self, replicas: Callable[[], Sequence[Readable]]) -> None:
        self._replicas = replicas
        self._is_logged = False
        self._latest: dict[str, tuple[EngineMetric, ...]] = {}
        """By label."""

    @property
    def latest(self) -> tuple[EngineMetric, ...]:
        """Of all replicas."""
        return tuple(metric for each in self._latest.values() for metric in each)

    async def run(self) -> None:
        """Read periodically, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            replicas = self._replicas()
            for gone in self._latest.keys() - {each.label for each in replicas}:
                del self._latest[gone]
            for each in replicas:
                if not each.is_busy:
                    # Gauges no longer hold; counters still do.
                    latest = self._latest.get(each.label, ())
                    self._latest[each.label] = tuple(m for m in latest if m.type == "counter")
            async with asyncio.TaskGroup() as group:
                for each in replicas:
                    if each.is_busy:
                        group.create_task(self.read(each), name="read metrics")

    async def read(self, replica: Readable) -> None:
        """Read once. An engine without metrics is no fault."""
        text = await replica.probe.text("/metrics")
        if text is not None:
            found = parse(text)
            if replica.label:
                found = tuple(metric._replace(replica=replica.label) for metric in found)
            self._latest[replica.label] = found
        elif not self._is_logged:
            self._is_logged = True
            _log.info(
                "engine_metrics_off",
                "llama-server does not serve its own metrics; start it with --metrics",
            )
