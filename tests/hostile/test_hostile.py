"""The scenarios that take seconds. Their durations are judged by `make hostile` alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.hostile.measures import worst_excess_ms
from tests.hostile.runner import Run
from tests.hostile.scenarios import SCENARIOS

CHEAP = [name for name, scenario in SCENARIOS.items() if scenario.is_cheap]


@pytest.mark.parametrize("name", CHEAP)
def test_hostile_clients_take_nothing_from_others_and_leave_nothing_behind(
    name: str, tmp_path: Path
) -> None:
    one = Run(name, SCENARIOS[name], seconds=30.0, folder=tmp_path, judges_time=False)

    outcome = asyncio.run(one.run())

    assert outcome.served
    assert outcome.broken == []


def test_a_stall_of_the_machine_is_not_attributed_to_the_gateway() -> None:
    control = [(0.0, 0.02), (0.02, 0.04), (0.04, 0.34), (0.34, 0.36)]
    both_stalled = [(0.0, 0.02), (0.02, 0.05), (0.05, 0.35)]
    gateway_stalled = [(0.0, 0.02), (0.02, 0.04), (0.34, 0.84)]

    assert worst_excess_ms(both_stalled, control) < 20
    assert round(worst_excess_ms(gateway_stalled, control)) == 480
