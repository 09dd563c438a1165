from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest

from llama_gguf.net import clock
from llama_gguf.net.clock import Clock


def test_the_date_is_that_of_the_last_tick() -> None:
    clock = Clock()
    clock.tick()

    assert clock.date.startswith(b"Date: ")
    assert clock.date.endswith(b" GMT\r\n")
    said = parsedate_to_datetime(clock.date[6:-2].decode()).timestamp()
    assert 0 <= clock.wall - said < 1


def test_durations_never_run_backwards() -> None:
    clock = Clock()

    assert clock.started_at <= clock.now() <= clock.now()


def test_limits_that_are_shared_do_not_follow_a_clock_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = Clock()
    assert now.limits_wall() == now.wall
    now.follow(1_800_000_000.0 - now.now())
    monkeypatch.setattr(clock, "wall_now", lambda: 1_900_000_000.0)
    now.tick()

    assert now.wall == 1_900_000_000.0
    assert 1_800_000_000.0 <= now.limits_wall() < 1_800_000_000.0 + 3600
