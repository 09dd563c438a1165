"""Histories of an engine's slots: what is saved, what comes back, and what never does."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from llama_gguf.engines.activity import Activity
from llama_gguf.engines.slot_client import SlotError, SlotTimeout
from llama_gguf.events import event_of
from llama_gguf.supervisor.launch import Launch
from llama_gguf.supervisor.prompt_keeper import OLDER_SECONDS, STOP_SAVE_SECONDS, Moment
from llama_gguf.supervisor.prompts import DISCARD_SECONDS, DISK_SECONDS, PromptCache
from tests.supervisor.slots import Box, FakeOwners, FakeSlots, inline
from tests.support.virtual_time import run

T = TypeVar("T")
A, B, C, D = (tuple(range(start, start + 200)) for start in (0, 1000, 2000, 3000))


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def work() -> None:
        await scenario()

    run(lambda _: work())


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_what_the_slots_held_is_there_after_a_stop(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        slots.ask(1, B)
        assert await keeper.save()

        keeper, slots = await box.engine()
        assert slots.held == [B, A]  # the most recently used first
        assert slots.ask(0, B) == slots.ask(1, A) == 1
        assert keeper.facts["restored"] == [200, 200]
        assert keeper.facts["seconds_per_token"] == 0.01
        assert (keeper.facts["saves"], keeper.facts["restores"]) == (2, 2)

    play(scenario)


def test_more_conversations_than_slots_come_back_from_the_engines_memory(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A, B, C, D)

        _, slots = await box.engine(slots=2)
        assert slots.held == [D, C]
        assert [slots.ask(0, tokens) for tokens in (A, B, C)] == [1, 1, 1]

    play(scenario)


def test_a_slow_disk_delays_the_first_request_by_the_slots_alone(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A, B, C, D)

        _, slots = await box.engine(
            slots=1, client=FakeSlots(box.folder, 1, restore_seconds=OLDER_SECONDS)
        )
        assert slots.calls.count("restore 0") == 2 + 1  # one older, the latest, and its trial
        assert slots.held == [D]

    play(scenario)


def test_a_continued_conversation_is_one_state(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.saved(A)
        keeper.on_owners(["ann:1"])
        slots.ask(0, (*A, 7, 8))
        await keeper.save()

        assert [entry.tokens for entry in box.store.entries()] == [202]

    play(scenario)


def test_nothing_is_restored_into_a_changed_model_or_another_build(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A)

        _, slots = await box.engine(source=box.source(build="b2"))
        assert slots.held == [(), ()]
        box.model.write_bytes(b"weightz")
        for _ in range(2):  # its digest unknown, and known
            _, slots = await box.engine()
            assert slots.held == [(), ()]
        box.model.write_bytes(b"weights")
        await box.engine()
        _, slots = await box.engine()
        assert slots.held[0] == A

    play(scenario)


def test_nothing_is_saved_of_a_model_whose_file_was_changed_while_it_is_served(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        box.model.write_bytes(b"weightz")
        assert not await keeper.save()
        assert not box.store.entries()

    play(scenario)


def test_a_model_that_computes_restored_prompts_again_is_left_alone(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await box.saved(A)

        client = FakeSlots(box.folder)
        client.can_resume = False
        keeper, slots = await box.engine(client=client)
        keeper.on_owners(["ann:1"])
        slots.ask(1, B)
        assert not await keeper.save()
        assert not box.store.entries()
        box.serve()
        keeper, slots = await box.engine()  # remembered
        keeper.on_owners(["ann:1"])
        slots.ask(1, B)
        assert not await keeper.save()

    play(scenario)
    assert [event_of(each) for each in caplog.records].count("prompt_cache_useless") == 1


def test_a_model_that_computes_a_restored_prompt_for_too_long_is_left_alone(box: Box) -> None:
    class Recurrent(FakeSlots):
        async def compute(
            self, prompt: Sequence[int] | str, *, seconds: float = 0.0
        ) -> tuple[int, int]:
            del prompt
            self.calls.append("compute")
            await asyncio.sleep(seconds)
            raise SlotTimeout(0, f"it did not respond within {seconds:g} s")

    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        await keeper.save()
        _, slots = await box.engine(client=Recurrent(box.folder))
        assert slots.calls.count("compute") == 1
        assert not box.store.entries()
        box.serve()
        keeper, slots = await box.engine(client=Recurrent(box.folder))
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        assert not await keeper.save()
        assert keeper.facts["restore_failures"] == 0

    play(scenario)


def test_a_model_that_works_is_tried_out_once(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A)
        _, slots = await box.engine()
        assert slots.prompt_tokens == 1
        assert slots.held[0] == A  # as it was before
        _, slots = await box.engine()
        assert slots.prompt_tokens == 0

    play(scenario)


def test_an_engine_that_cannot_save_slots_is_asked_once(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        slots.error = SlotError(501, "This feature is not supported by multimodal")
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        for _ in range(3):
            await keeper.save()
        assert slots.calls.count("save 0") == 1

    play(scenario)
    assert "not supported by multimodal" in caplog.text


# Owners -------------------------------------------------------------------------------------------


def test_a_revoked_key_takes_its_states_along_and_none_is_written_for_it(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.saved(A)
        keeper.on_owners(["bob:2"])
        slots.ask(1, B)
        box.owners.gone = {"bob:2"}
        await keeper.save()
        assert [entry.owners for entry in box.store.entries()] == [("ann:1",)]

        box.owners.gone = {"ann:1"}
        _, slots = await box.engine()
        assert slots.held == [(), ()]
        assert not list(box.folder.glob("*.state"))

    play(scenario)


def test_the_states_of_a_revoked_key_are_removed_while_it_is_served(
    box: Box, tmp_path: Path
) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        box.owners.path = str(tmp_path / "keys")
        (tmp_path / "keys").write_text("ann")
        watching = asyncio.get_running_loop().create_task(box.cache.watch_keys())
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        await keeper.save()
        await asyncio.sleep(10)
        assert box.store.entries()
        box.owners.gone = {"ann:1"}
        (tmp_path / "keys").write_text("bobby")
        await asyncio.sleep(2)
        assert not box.store.entries()
        watching.cancel()

    play(scenario)


def test_the_keys_are_watched_on_when_no_thread_can_be_started_for_a_while(
    box: Box, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter(range(3))

    async def scarce(work: Callable[[], T]) -> T:
        if next(failures, None) is not None:
            raise RuntimeError("can't start new thread")
        return work()

    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        await keeper.save()
        box.owners.path = str(tmp_path / "keys")
        (tmp_path / "keys").write_text("ann")
        box.owners.gone = {"ann:1"}
        cache = PromptCache(box.store, box.owners, scarce)
        watching = asyncio.get_running_loop().create_task(cache.watch_keys())
        await asyncio.sleep(10)
        assert not box.store.entries()
        watching.cancel()

    play(scenario)
    assert caplog.text.count("new thread") == 1


def test_a_key_that_is_removed_while_its_state_is_written_takes_it_along(box: Box) -> None:
    class RemovedAfterTheFirstLook(FakeOwners):
        def revoked(self, owners: Collection[str]) -> set[str]:
            before, self.gone = self.gone, {"ann:1"}
            return before.intersection(owners)

    async def scenario() -> None:
        box.owners = RemovedAfterTheFirstLook()
        box.serve()
        box.owners.gone = set()
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        box.owners.gone = set()
        await keeper.save()
        assert not list(box.folder.glob("*.state"))

    play(scenario)


def test_what_may_be_of_any_key_is_not_written(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        slots.ask(0, A)  # not by the gateway
        await keeper.save()
        assert not box.store.entries()
        keeper.on_owners(["ann:1"])
        slots.ask(1, B)
        keeper.on_gateway_lost()
        await keeper.save()
        assert not box.store.entries()
        keeper.on_owners(["ann:1"])
        slots.ask(1, C)
        await keeper.save()
        assert len(box.store.entries()) == 1

    play(scenario)


# Moments ------------------------------------------------------------------------------------------


def test_a_long_prompt_is_saved_at_a_quiet_moment_so_that_a_crash_loses_little(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        await keeper.on_tick(Activity(running=1, responses=0))
        slots.ask(0, A)
        keeper.on_owners(["ann:1"])
        for _ in range(4):
            assert not await keeper.on_tick(Activity(running=0, responses=1))
            await asyncio.sleep(1)
        assert slots.calls.count("save 0") == 0
        await asyncio.sleep(2)
        assert await keeper.on_tick(Activity(running=0, responses=1))
        assert not await keeper.on_tick(Activity(running=0, responses=1))

        _, slots = await box.engine()  # after a crash
        assert slots.held[0] == A

    play(scenario)


def test_a_key_that_the_gateway_reports_after_the_save_owns_what_was_saved(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        slots.ask(0, A)
        saving = asyncio.get_running_loop().create_task(keeper.save(Moment.REPLACEMENT))
        await asyncio.sleep(0.5)
        keeper.on_owners(["ann:1"])
        await saving
        assert [entry.owners for entry in box.store.entries()] == [("ann:1",)]

    play(scenario)


def test_a_key_that_is_reported_late_owns_what_is_not_worth_saving_yet(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])  # some seconds ago
        slots.ask(0, A[:40])  # of bob
        looking = asyncio.get_running_loop().create_task(keeper.save(Moment.QUIET))
        await asyncio.sleep(0.5)
        keeper.on_owners(["bob:2"])
        assert not await looking
        await keeper.save(Moment.QUIET)
        keeper.on_owners(["eve:3"])
        slots.ask(1, B)
        await keeper.save()
        owners = {entry.tokens: entry.owners for entry in box.store.entries()}
        assert owners[40] == ("ann:1", "bob:2")

    play(scenario)


def test_a_slot_that_works_on_a_request_is_left(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        slots.ask(1, B)
        slots.busy = {1}
        await keeper.save(Moment.REPLACEMENT)
        assert slots.calls.count("save 1") == 0
        slots.busy = set()
        await keeper.save()
        assert {entry.owners for entry in box.store.entries()} == {("ann:1",)}
        assert slots.calls.count("save 0") == slots.calls.count("save 1") == 1

    play(scenario)


def test_a_stop_waits_a_limited_time(box: Box) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        slots.save_seconds = 1000.0
        before = asyncio.get_running_loop().time()
        await keeper.save()
        assert asyncio.get_running_loop().time() - before == STOP_SAVE_SECONDS
        assert not list(box.folder.glob("*.saving"))

    play(scenario)


# Damage -------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_short_is_passed_over(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A, B)
        os.truncate(next(box.folder.glob("*.state")), 500)

        _, slots = await box.engine()
        assert sum(bool(held) for held in slots.held) == 1

    play(scenario)


def test_a_file_that_the_engine_refuses_is_removed_and_reported_once(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await box.saved(A, B)
        client = FakeSlots(box.folder)
        client.error = SlotError(400, "Unable to restore slot")
        keeper, _ = await box.engine(client=client)
        assert keeper.facts["restore_failures"] == 2
        assert not box.store.entries()

    play(scenario)
    assert [event_of(each) for each in caplog.records].count("prompt_cache_failed") == 1


def test_a_state_of_which_the_engine_dies_is_not_tried_again(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A)
        loop = asyncio.get_running_loop()
        dying = loop.create_task(box.engine(client=FakeSlots(box.folder, restore_seconds=3600)))
        await asyncio.sleep(1)
        dying.cancel()  # as its watch is, at its death
        await asyncio.gather(dying, return_exceptions=True)
        keeper, slots = await box.engine()
        assert slots.calls == []
        assert keeper.facts["restore_failures"] == 1

    play(scenario)


def test_a_restore_that_a_stop_has_interrupted_is_no_failure(box: Box) -> None:
    async def scenario() -> None:
        await box.saved(A)
        stopped = asyncio.get_running_loop().create_task(
            box.engine(client=FakeSlots(box.folder, restore_seconds=3600))
        )
        await asyncio.sleep(1)
        box.is_leaving = True
        stopped.cancel()
        await asyncio.gather(stopped, return_exceptions=True)
        box.serve()
        _, slots = await box.engine()
        assert slots.held[0] == A

    play(scenario)


def test_a_stop_while_a_restore_begins_loses_nothing(box: Box) -> None:
    class Slow(PromptCache):
        """A thread continues if its caller is cancelled."""

        async def begin_restore(self, engine: str, names: Sequence[str]) -> None:
            async def write() -> None:
                begun.set()
                await asyncio.sleep(1)
                await PromptCache.begin_restore(self, engine, names)

            await asyncio.shield(asyncio.ensure_future(write()))

    begun = asyncio.Event()

    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        await keeper.save()

        box.cache = Slow(box.store, box.owners, inline)
        stopped = asyncio.get_running_loop().create_task(box.engine())
        await begun.wait()
        box.is_leaving = True
        stopped.cancel()
        await asyncio.gather(stopped, return_exceptions=True)
        await asyncio.sleep(2)
        box.serve()
        _, slots = await box.engine()
        assert slots.held[0] == A

    play(scenario)


@pytest.mark.parametrize("trouble", ["gone", "full", "silent"])
def test_trouble_with_disk_or_engine_is_reported_once_and_stops_nothing(
    box: Box, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        if trouble == "gone":
            for file in box.folder.iterdir():
                file.unlink()
            box.folder.rmdir()
            await box.engine()  # computes the digest in vain
        elif trouble == "full":
            slots.error = SlotError(500, "failed to write")
        else:
            slots.error = SlotError(0, "it did not respond")
        for number in range(3):
            slots.ask(0, (number, *A))
            await keeper.save()

    with caplog.at_level(logging.WARNING):
        play(scenario)
    events = [event_of(each) for each in caplog.records]
    assert events.count("prompt_cache_failed") == (0 if trouble == "gone" else 1)
    assert not list(box.folder.glob("*.saving"))


def test_an_engine_starts_although_the_folder_has_disappeared(box: Box) -> None:
    async def scenario() -> None:
        argv = ["llama-server", "--slot-save-path", str(box.folder), "--port", "1"]
        launch = Launch(argv, {}, prompts=box.source())
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        shutil.rmtree(box.folder)
        assert await keeper.argv_of(launch) == argv
        assert box.folder.is_dir()

        shutil.rmtree(box.folder)
        box.folder.write_text("a file")
        assert await keeper.argv_of(launch) == ["llama-server", "--port", "1"]
        await keeper.restore(launch.prompts, is_leaving=lambda: False)
        slots.ask(1, A)
        assert not await keeper.save()
        assert slots.calls.count("save 1") == 0

    play(scenario)


def test_a_disk_that_hangs_delays_a_start_and_a_stop_for_a_limited_time(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(work: Callable[[], T]) -> T:
        await asyncio.sleep(1e6)
        return work()

    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        slots.save_seconds = 1e5  # what the engine writes hangs too
        loop = asyncio.get_running_loop()
        before = loop.time()
        saving = loop.create_task(keeper.save())
        await asyncio.sleep(1)
        box.cache._unlimited = hang
        assert not await saving
        assert loop.time() - before <= STOP_SAVE_SECONDS + DISCARD_SECONDS

        before = loop.time()
        box.cache = PromptCache(box.store, box.owners, hang)
        keeper, slots = await box.engine()
        assert await keeper.argv_of(Launch(["llama-server"], {})) == ["llama-server"]
        assert loop.time() - before <= DISK_SECONDS + 1

    play(scenario)
    assert "the disk did not respond" in caplog.text


def test_without_a_thread_nothing_is_saved_or_restored_and_serving_continues(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    async def no_thread(work: Callable[[], T]) -> T:
        del work
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        slots.ask(0, A)
        box.cache._unlimited = no_thread
        assert not await keeper.save()
        _, slots = await box.engine()
        assert slots.calls == []

    play(scenario)
    assert caplog.text.count("new thread") == 2  # the save, the restore


def test_a_size_of_nothing_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = Box(tmp_path, max_bytes=100)

    async def scenario() -> None:
        keeper, slots = await box.engine()
        keeper.on_owners(["ann:1"])
        for _ in range(3):
            slots.ask(0, A)
            await keeper.save()
        assert keeper.facts["save_failures"] == 3
        assert not list(box.folder.glob("*.state"))
        assert slots.calls.count("save 0") == 1  # then its size is known

    play(scenario)
    assert caplog.text.count("PROMPT_CACHE_SIZE") == 1
