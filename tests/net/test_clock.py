from __future__ import annotations

from email.utils import parsedate_to_datetime

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
