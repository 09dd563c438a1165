"""Quiet moments, and what is worth a save: histories with a fake clock."""

from __future__ import annotations

from llama_gguf.prompt_cache.quiet import QUIET_SECONDS, Growth, QuietWatch


def test_a_quiet_moment_is_reported_once_after_responses() -> None:
    watch = QuietWatch()
    assert not watch.check(running=0, responses=0, now=0.0)
    assert not watch.check(running=0, responses=0, now=60.0)  # nothing has happened
    assert not watch.check(running=1, responses=0, now=61.0)
    assert not watch.check(running=0, responses=1, now=62.0)
    assert not watch.check(running=0, responses=1, now=61.0 + QUIET_SECONDS)
    assert watch.check(running=0, responses=1, now=62.0 + QUIET_SECONDS)
    assert not watch.check(running=0, responses=1, now=90.0)


def test_a_server_that_always_has_requests_is_never_quiet() -> None:
    watch = QuietWatch()

    assert not any(watch.check(running=1, responses=n, now=10.0 * n) for n in range(20))
    assert not any(watch.check(running=0, responses=n, now=10.0 * n) for n in range(20, 40))


def test_a_slot_is_worth_saving_after_a_long_prompt() -> None:
    growth = Growth()
    growth.look(100, [0])
    assert not growth.is_worth_saving(0, 100)
    growth.look(200, [0, 1])
    assert growth.is_worth_saving(0, 200)
    assert not growth.is_worth_saving(1, 100)


def test_a_long_conversation_is_not_written_with_each_turn() -> None:
    growth = Growth()
    growth.look(8000, [0])
    assert growth.is_worth_saving(0, 8000)
    growth.on_saved(0)
    growth.look(8300, [0])
    assert not growth.is_worth_saving(0, 8300)
    growth.look(10400, [0])
    assert growth.is_worth_saving(0, 9600)


def test_an_engine_that_was_restarted_counts_from_zero() -> None:
    growth = Growth()
    growth.look(8000, [0])
    growth.on_saved(0)
    growth.look(10, [0])
    growth.look(200, [0])

    assert growth.is_worth_saving(0, 200)
