"""Whose content a slot has: histories of looks and reports."""

from __future__ import annotations

from llama_gguf.prompt_cache.attribution import Attribution, SlotView


def slot(
    number: int, task: int | None, *, busy: bool = False, tokens: int | None = 100
) -> SlotView:
    return SlotView(number, busy, task, tokens)


def test_a_changed_slot_belongs_to_the_keys_that_were_active_since_the_last_look() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    slots.look([slot(0, 1), slot(1, None)], is_quiet=True)
    slots.settle()
    slots.on_owners(["bob"])
    slots.look([slot(0, 1), slot(1, 2)], is_quiet=True)

    assert slots.owners_of(slot(0, 1)) == ("ann",)
    assert slots.owners_of(slot(1, 2)) == ("bob",)


def test_a_key_that_is_reported_after_the_look_stays_an_owner() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    slots.look([slot(0, 1)], is_quiet=True)  # bob's, whose request was short
    slots.on_owners(["bob"])
    slots.settle()
    slots.look([slot(0, 1)], is_quiet=True)
    slots.on_owners(["eve"])
    slots.look([slot(0, 1), slot(1, 2)], is_quiet=True)

    assert slots.owners_of(slot(0, 1)) == ("ann", "bob")


def test_a_key_is_reported_late_also_if_its_report_was_not_waited_for() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    slots.look([slot(0, 1)], is_quiet=True)
    slots.on_owners(["bob"])
    slots.look([slot(0, 1)], is_quiet=True)

    assert slots.owners_of(slot(0, 1)) == ("ann", "bob")


def test_a_slot_that_several_keys_may_have_used_belongs_to_all_of_them() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    slots.on_owners(["bob"])
    slots.look([slot(0, 1), slot(1, 2)], is_quiet=True)

    assert slots.owners_of(slot(0, 1)) == slots.owners_of(slot(1, 2)) == ("ann", "bob")


def test_what_another_key_has_overwritten_is_not_the_first_ones_any_more() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    slots.look([slot(0, 1)], is_quiet=True)
    slots.on_owners(["bob"])
    slots.look([slot(0, 2)], is_quiet=True)

    assert slots.owners_of(slot(0, 2)) == ("bob",)


def test_a_key_that_is_active_during_a_look_is_not_forgotten() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    slots.look([slot(0, 1, busy=True)], is_quiet=False)
    slots.look([slot(0, 1)], is_quiet=True)

    assert slots.owners_of(slot(0, 1)) == ("ann",)


def test_a_key_that_is_reported_after_the_look_counts() -> None:
    slots = Attribution()
    slots.look([slot(0, 1)], is_quiet=True)
    slots.on_owners(["ann"])

    assert slots.owners_of(slot(0, 1)) == ("ann",)


def test_what_is_idle_and_has_changed_can_be_saved_the_most_recent_first() -> None:
    slots = Attribution()
    slots.on_owners(["ann"])
    looked_at = [slot(0, 7), slot(1, 9), slot(2, 8, busy=True), slot(3, None), slot(4, 5, tokens=0)]

    assert [each.id for each in slots.look(looked_at, is_quiet=True)] == [1, 0]


def test_what_is_on_disk_is_not_saved_again() -> None:
    slots = Attribution()
    slots.restored([slot(0, 1), slot(1, None)])
    assert slots.look([slot(0, 1), slot(1, None)], is_quiet=True) == []

    slots.on_owners(["ann"])
    (changed,) = slots.look([slot(0, 1), slot(1, 2)], is_quiet=True)
    slots.on_saved(changed)
    assert slots.look([slot(0, 1), slot(1, 2)], is_quiet=True) == []
    assert slots.look([slot(0, 1), slot(1, 3)], is_quiet=True) == [slot(1, 3)]
