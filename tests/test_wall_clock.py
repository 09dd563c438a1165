from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from llama_gguf.access.moments import format_moment
from llama_gguf.wall_clock import iso, iso_time, wall_now


def test_it_is_in_posix_seconds() -> None:
    before = time.time_ns() / 1e9

    assert before - 1 <= wall_now() <= time.time_ns() / 1e9 + 1


@pytest.mark.parametrize(
    "seconds", [0, 951_782_399, 951_868_799.999, 1_830_384_000.5, 253_402_300_799, -62_135_596_800]
)
def test_a_moment_reads_as_that_of_datetime(seconds: float) -> None:
    expected = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

    assert iso(seconds) == expected
    assert iso_time(seconds) + "+00:00" == expected
    assert format_moment(seconds) == expected.replace("+00:00", "Z")
