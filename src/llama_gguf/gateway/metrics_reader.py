"""Reads llama-server's own metrics, so that one scrape returns both.

Only while requests are in flight, since reading them may wake an engine that sleeps; the counters
that were read last are served otherwise. Nobody's scrape ever asks the engine: its rates start
anew at each read, so it has one reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from llama_gguf.engines.probe import Probe
from llama_gguf.events import EventLog
from llama_gguf.telemetry.engine_metrics import parse
from llama_gguf.telemetry.metrics import EngineMetric

_log: Final = EventLog(__name__)

EVERY_SECONDS: Final = 5.0
"""More than once a second, and llama-server would notice no departed client any more
(docs/adr/0010-a-departed-client-and-llama-server.md).
"""


class EngineReader:
    """Of one gateway.

    Args:
        probe: knows where the engine is.
        is_busy: tells whether the engine is awake, and has requests.
    """

    def __init__(self, probe: Probe, is_busy: Callable[[], bool]) -> None:
        self._probe = probe
        self._is_busy = is_busy
        self._has_complained = False
        self.latest: tuple[EngineMetric, ...] = ()

    async def run(self) -> None:
        """Read again and again."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if self._is_busy():
                await self.read()
            else:
                # What it was doing then it is not doing now; what it has done, it has.
                self.latest = tuple(m for m in self.latest if m.metric.type == "counter")

    async def read(self) -> None:
        """Read once. An engine that does not tell is no fault: another one may have no metrics."""
        text = await self._probe.text("/metrics")
        if text is not None:
            self.latest = parse(text)
        elif not self._has_complained:
            self._has_complained = True
            _log.info(
                "engine_metrics_off",
                "llama-server does not serve its own metrics; start it with --metrics",
            )
