"""Which states are restored, replaced and removed: tables."""

from __future__ import annotations

import pytest

from llama_gguf.prompt_cache.choice import (
    MAX_FILES,
    evicted,
    helps,
    is_superseded,
    probed,
    restore_batches,
)
from llama_gguf.prompt_cache.entry import Entry


def entry(name: str, used_at: float, size: int = 10, tokens: int = 100) -> Entry:
    return Entry(name, "v", tokens, size, used_at, ("me",))


def names(entries: list[Entry]) -> str:
    return "".join(each.name for each in entries)


FIVE = [entry(name, used_at) for name, used_at in zip("caebd", (3, 1, 5, 2, 4), strict=True)]


@pytest.mark.parametrize(
    ("slots", "ram", "expected"),
    [
        (8, 100, ["edcba"]),
        (5, 0, ["edcba"]),
        (2, 0, ["ed"]),  # no cache in RAM: as many as there are slots
        (2, 100, ["a", "cb", "ed"]),  # the most recent last, so that they are in the slots
        (2, 25, ["cb", "ed"]),  # the oldest does not fit
        (1, 100, ["a", "b", "c", "d", "e"]),
    ],
)
def test_the_most_recent_are_restored_last_and_the_others_as_far_as_memory_allows(
    slots: int, ram: int, expected: list[str]
) -> None:
    assert [names(batch) for batch in restore_batches(FIVE, slots, ram)] == expected


def test_nothing_is_restored_from_nothing() -> None:
    assert restore_batches([], 4, 100) == []


@pytest.mark.parametrize(
    ("max_bytes", "incoming", "expected"),
    [(50, 0, ""), (49, 0, "a"), (50, 10, "a"), (25, 10, "abcd"), (0, 0, "abcde"), (5, 10, "abcde")],
)
def test_the_least_recently_used_are_removed_until_the_others_fit(
    max_bytes: int, incoming: int, expected: str
) -> None:
    assert names(evicted(FIVE, max_bytes, incoming)) == expected


def test_there_is_a_number_of_files_that_is_never_exceeded() -> None:
    many = [entry(str(n), n) for n in range(MAX_FILES + 2)]

    assert evicted(many, 1 << 30) == many[:2]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((1, 2), (1, 2, 3), True),
        ((1, 2), (1, 2), True),
        ((1, 2, 3), (1, 2), False),
        ((1, 9), (1, 2, 3), False),
    ],
)
def test_only_a_conversation_that_is_continued_is_superseded(
    old: tuple[int, ...], new: tuple[int, ...], expected: bool
) -> None:
    assert is_superseded(old, new) is expected


def test_a_restore_helps_if_all_but_a_few_tokens_were_cached() -> None:
    assert helps(277, 272)
    assert not helps(277, 271)
    assert not helps(277, 0)


def test_the_shortest_state_is_tried_out() -> None:
    long, short, tiny = (entry(n, 1, tokens=t) for n, t in (("l", 900), ("s", 40), ("t", 9)))

    assert probed([long, short, tiny]) == short
    assert probed([tiny]) is None
