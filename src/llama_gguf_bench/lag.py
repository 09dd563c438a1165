"""Measures whether the load generator was late, which would look like a slow server."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf_bench.estimates import quantile

TICK_SECONDS: Final = 0.01
RESOLUTION_SECONDS: Final = 0.001
"""An event loop's timers have a resolution of 1 ms: a smaller delay is no lag."""
TOLERATED_SHARE: Final = 0.1
"""The tolerated lag, as a share of the smallest reported latency."""
BUSY_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Generator:
    """The state of the load generator itself during one level."""

    lag_p50: float = 0.0
    lag_p99: float = 0.0
    lag_max: float = 0.0
    cpu_share: float = 0.0
    """Of one CPU; near 1, the generator is the bottleneck."""

    def complaint(self, smallest: float | None) -> str:
        """The warning for the reader of the numbers; empty if they are reliable.

        Args:
            smallest: the smallest reported latency, in seconds.
        """
        if self.cpu_share > BUSY_SHARE:
            return (
                f"the load generator used {self.cpu_share:.0%} of a CPU: "
                "the server may be faster than measured"
            )
        if smallest is not None and self.lag_p99 > TOLERATED_SHARE * smallest:
            return (
                f"the load generator's event loop was late by up to {self.lag_p99 * 1e3:.1f} ms "
                "(p99): measured latencies may be too high by this amount"
            )
        return ""

    def as_json(self) -> dict[str, Any]:
        return {
            "lag_p50_seconds": round(self.lag_p50, 6),
            "lag_p99_seconds": round(self.lag_p99, 6),
            "lag_max_seconds": round(self.lag_max, 6),
            "cpu_share": round(self.cpu_share, 4),
        }


class LagMeter:
    """Measures how late a timer of the running loop fires, a hundred times a second."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._lags = array("d")

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began, self._cpu_began = self._clock(), self._cpu_clock()
        self._arm()

    def _arm(self) -> None:
        self._due = self._clock() + TICK_SECONDS
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._lags.append(max(0.0, self._clock() - self._due - RESOLUTION_SECONDS))
        self._arm()

    def stop(self) -> Generator:
        self._timer.cancel()
        lasted = self._clock() - self._began
        lags = sorted(self._lags) or [0.0]
        return Generator(
            lag_p50=quantile(lags, 0.5),
            lag_p99=quantile(lags, 0.99),
            lag_max=lags[-1],
            cpu_share=(self._cpu_clock() - self._cpu_began) / lasted if lasted > 0 else 0.0,
        )
