"""Reads llama-server's own metrics, so that one scrape returns both.

Only while requests are in flight, since reading may wake an engine that is asleep; otherwise the
last counters are served. A scrape never reads the engine: its rates are reset by each read, so it
has one reader.
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
"""If more than once a second, llama-server would no longer notice disconnected clients
(docs/adr/0010-a-departed-client-and-llama-server.md).
"""


class EngineReader:
    """Of one gateway.

    Args:
        probe: reads from the engine.
        is_busy: whether the engine is awake and has requests.
    """

    def __init__(self, probe: Probe, is_busy: Callable[[], bool]) -> None:
        self._probe = probe
        self._is_busy = is_busy
        self._is_logged = False
        self.latest: tuple[EngineMetric, ...] = ()

    async def run(self) -> None:
        """Read periodically, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if self._is_busy():
                await self.read()
            else:
                # Gauges no longer hold; counters still do.
                self.latest = tuple(m for m in self.latest if m.type == "counter")

    async def read(self) -> None:
        """Read once. An engine without metrics is no fault."""
        text = await self._probe.text("/metrics")
        if text is not None:
            self.latest = parse(text)
        elif not self._is_logged:
            self._is_logged = True
            _log.info(
                "engine_metrics_off",
                "llama-server does not serve its own metrics; start it with --metrics",
            )
