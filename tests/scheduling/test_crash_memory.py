from __future__ import annotations

from llama_gguf.scheduling.crash_memory import MAX_ENTRIES, SECONDS, CrashMemory


def test_a_request_is_refused_for_ten_minutes_and_no_other_is() -> None:
    memory = CrashMemory()
    memory.add(b"/", b"deadly", 100.0)

    assert memory.remaining(b"/", b"deadly", 100.0) == SECONDS == 600.0
    assert memory.remaining(b"/", b"deadly", 699.0) == 1.0
    assert memory.remaining(b"/", b"deadly", 700.0) == 0.0
    assert memory.remaining(b"/", b"harmless", 100.0) == 0.0


def test_its_time_begins_again_when_it_has_done_it_again() -> None:
    memory = CrashMemory()
    memory.add(b"/", b"a", 0.0)
    memory.add(b"/", b"b", 1.0)
    memory.add(b"/", b"a", 500.0)
    memory.forget(601.0)

    assert memory.remaining(b"/", b"a", 601.0) == 499.0
    assert memory.remaining(b"/", b"b", 601.0) == 0.0


def test_it_is_in_use_until_the_last_entry_is_over() -> None:
    memory = CrashMemory()
    found = [memory.is_in_use]
    memory.add(b"/", b"a", 0.0)
    for now in (599.0, 600.0):
        memory.forget(now)
        found.append(memory.is_in_use)

    assert found == [False, True, False]


def test_beyond_its_bound_the_oldest_is_forgotten() -> None:
    memory = CrashMemory()
    for n in range(MAX_ENTRIES + 1):
        memory.add(b"/", b"%d" % n, float(n))

    now = float(MAX_ENTRIES)
    assert memory.remaining(b"/", b"0", min(now, 1.0)) == 0.0
    assert memory.remaining(b"/", b"1", 1.0) == SECONDS
    assert memory.remaining(b"/", b"%d" % MAX_ENTRIES, now) == SECONDS
