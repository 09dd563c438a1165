from __future__ import annotations

import asyncio
from pathlib import Path

from tests.soak.soak import Size, Soak


def test_after_thousands_of_visits_all_resources_are_released(tmp_path: Path) -> None:
    size = Size(requests=3_000, streams=100, seed=1)

    outcome = asyncio.run(Soak(size, tmp_path, report=lambda _: None).run())

    assert outcome.faults == []
