from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llama_gguf_bench.lag import TICK_SECONDS, Generator, LagMeter
from tests.support import virtual_time


def measured(*, late_by: float, cpu_share: float = 0.1) -> Generator:
    """A loop whose every tenth timer fires *late_by* seconds late."""

    async def scenario(now: Callable[[], float]) -> Generator:
        calls = 0

        def clock() -> (
            float
        ):  # two readings per tick: when the timer fires, and when the next one is set
            nonlocal calls
            calls += 1
            return now() + (late_by if calls > 2 and calls % 20 == 1 else 0)

        meter = LagMeter(clock, lambda: now() * cpu_share)
        meter.start()
        await asyncio.sleep(200.5 * TICK_SECONDS)
        return meter.stop()

    return virtual_time.run(scenario)


def test_a_punctual_loop_has_no_lag() -> None:
    found = measured(late_by=0.0)

    assert (found.lag_p99, found.lag_max) == (0.0, 0.0)
    assert found.cpu_share == pytest.approx(0.1)


def test_a_delay_beyond_the_timers_resolution_is_lag() -> None:
    found = measured(late_by=0.021)

    assert found.lag_p50 == 0.0
    assert found.lag_max == pytest.approx(0.020)


def test_lag_causes_a_warning_if_it_is_large_against_the_latencies() -> None:
    late = Generator(lag_p99=0.005)

    assert "late by up to 5.0 ms" in late.complaint(0.010)
    assert late.complaint(1.0) == ""
    assert late.complaint(None) == ""


def test_a_generator_at_its_cpu_limit_causes_a_warning() -> None:
    assert "95% of a CPU" in Generator(cpu_share=0.95).complaint(1.0)


def test_the_measurements_are_in_the_file() -> None:
    assert Generator(lag_p99=0.0123456789).as_json()["lag_p99_seconds"] == 0.012346
