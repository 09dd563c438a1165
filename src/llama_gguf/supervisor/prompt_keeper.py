"""Saves what the slots of one engine hold, and restores it at the next start.

    restore   when the model has loaded, before the first request is let in
    save      before the engine is stopped, and at a quiet moment after long prompts

What is written and what is known of it is in ``prompts.py``, shared by all engines.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from llama_gguf.engines.activity import Activity
from llama_gguf.engines.slot_client import SlotError, SlotState, SlotTimeout
from llama_gguf.events import EventLog
from llama_gguf.prompt_cache import choice
from llama_gguf.prompt_cache.attribution import UNKNOWN, Attribution, SlotView
from llama_gguf.prompt_cache.entry import Entry
from llama_gguf.prompt_cache.folder import STATE
from llama_gguf.prompt_cache.quiet import Growth, QuietWatch
from llama_gguf.supervisor.launch import Launch, PromptSource
from llama_gguf.supervisor.managed_process import Clock
from llama_gguf.supervisor.prompt_source import without_saving
from llama_gguf.supervisor.prompts import PromptCache, facts_of
from llama_gguf.values import replace
from llama_gguf.wall_clock import wall_now

_log: Final = EventLog(__name__)

STOP_SAVE_SECONDS: Final = 10.0
"""For the slots of an engine that is being stopped: what is not saved by then is lost."""
QUIET_SAVE_SECONDS: Final = 20.0
"""The watchdogs wait so long."""
SETTLE_SECONDS: Final = 1.5
"""After which the gateway has reported the keys of all requests that are over: it does so twice a
second."""
OLDER_SECONDS: Final = 5.0
"""For the states of more conversations than there are slots."""
PROBE_SECONDS: Final = 20.0
MIN_TOKENS: Final = 32
"""A shorter prompt is computed as fast as it is restored."""
_SLOWEST_BYTES_PER_SECOND: Final = 20e6
_FIXED_SECONDS: Final = 10.0
_NOT_SUPPORTED: Final = 501

_life_numbers: Final = itertools.count(1)


class Moment(enum.Enum):
    """When slots are saved."""

    STOP = "stop"
    """Before the engine is stopped: no request runs, and the gateway has reported all keys."""
    REPLACEMENT = "replacement"
    """Another engine has loaded and takes over; this one may still work on requests."""
    QUIET = "quiet"
    """No request runs. The engine continues, so what has hardly changed is not saved."""


class Client(Protocol):
    """As ``SlotClient``."""

    async def slots(self) -> list[SlotState]: ...
    async def save(self, slot: int, file_name: str, *, seconds: float) -> tuple[int, int]: ...
    async def restore(self, slot: int, file_name: str, *, seconds: float) -> int: ...
    async def compute(
        self, prompt: Sequence[int] | str, *, seconds: float = ...
    ) -> tuple[int, int]: ...
    async def computed(self) -> tuple[int, float]: ...


class PromptKeeper:
    """Keeps the prompts of one engine.

    Args:
        cache: shared with the others.
        client: of the engine.
        clock: for what has to wait.
        engine: its address, as text.
    """

    def __init__(
        self,
        cache: PromptCache,
        client: Client,
        clock: Clock,
        *,
        engine: str = "",
    ) -> None:
        self._cache = cache
        self._client = client
        self._clock = clock
        self._engine = engine
        self._lock = asyncio.Lock()
        self._source: PromptSource | None = None
        self._has_folder = True
        self._attribution = Attribution()
        self._quiet = QuietWatch()
        self._growth = Growth()
        self._restored: list[int] = []
        self._rate = 0.0
        self._life = 0

    @property
    def facts(self) -> Mapping[str, Any]:
        """For the engine's status."""
        return facts_of(self._cache.totals, self._restored, self._life, self._rate)

    def on_owners(self, owners: Collection[str]) -> None:
        """The gateway has sent requests of these keys to the engine."""
        self._attribution.on_owners(owners)

    def on_gateway_lost(self) -> None:
        """It died: the keys that were active last are not known."""
        self._attribution.on_owners([UNKNOWN])

    async def argv_of(self, launch: Launch) -> Sequence[str]:
        """The command line of the next life. llama-server does not start without the folder."""
        self._has_folder = launch.prompts is None or await self._cache.open()
        return launch.argv if self._has_folder else without_saving(launch.argv)

    # Restoring ----------------------------------------------------------------------------------

    async def restore(self, source: PromptSource | None, *, is_leaving: Callable[[], bool]) -> None:
        """Restore what fits, before the first request; then have the model's digest computed.

        Args:
            source: what the engine was started with; None if its prompts cannot be kept.
            is_leaving: whether the engine is being stopped. If this is cancelled otherwise, it has
                died of what was restored.
        """
        source = self._source = source if self._has_folder else None
        self._attribution = Attribution()
        self._quiet = QuietWatch()
        self._growth = Growth()
        self._restored = []
        self._life = next(_life_numbers)
        if source is None:
            return
        try:
            await self._restore(source, is_leaving)
        except (SlotError, OSError) as error:
            self._cache.report("prompts were not restored", str(error))
        finally:
            self._cache.compute_digest(source)

    async def _restore(self, source: PromptSource, is_leaving: Callable[[], bool]) -> None:
        cache = self._cache
        if await cache.drop_failed(self._engine):
            self._note_failure("the engine ended while they were restored; they are removed")
        valid = await cache.validity(source)
        if valid is None or (helps := await cache.helps(valid)) is False:
            return
        entries = await cache.entries(valid)
        if not entries:
            return
        slots = len(await self._client.slots())
        batches = choice.restore_batches(entries, slots, source.ram_bytes)
        began_at = self._clock.now()
        names = [entry.name for batch in batches for entry in batch]
        marking = asyncio.get_running_loop().create_task(
            cache.begin_restore(self._engine, names), name="note what is restored"
        )
        try:
            await asyncio.shield(marking)
            restored = await self._restore_batches(batches)
            if helps is None and restored:
                await self._try_out(valid, batches[-1])
        except asyncio.CancelledError:
            if is_leaving():
                await marking
                await cache.end_restore(self._engine)
            raise
        await cache.end_restore(self._engine)
        self._attribution.restored([_view(slot) for slot in await self._client.slots()])
        if self._restored:
            _log.info(
                "prompts_restored",
                "Saved prompts restored: {count}, with {tokens} tokens, in {seconds:.1f} s",
                count=len(self._restored),
                tokens=sum(self._restored),
                seconds=round(self._clock.now() - began_at, 3),
            )

    async def _restore_batches(self, batches: Sequence[Sequence[Entry]]) -> int:
        """The number of those in the last batch that are restored."""
        deadline = self._clock.now() + OLDER_SECONDS
        for batch in batches[:-1]:
            if self._clock.now() < deadline and await self._restore_batch(batch):
                # A request makes llama-server move what its slots hold to its cache in RAM.
                await self._client.compute("x")
        return await self._restore_batch(batches[-1])

    async def _restore_batch(self, batch: Sequence[Entry]) -> int:
        count = 0
        for slot, entry in enumerate(batch):
            if await self._restore_slot(slot, entry):
                count += 1
                self._cache.totals.restores += 1
                self._restored.append(entry.tokens)
                self._rate = entry.seconds / entry.tokens if entry.tokens else 0.0
        return count

    async def _restore_slot(self, slot: int, entry: Entry) -> bool:
        try:
            tokens = await self._client.restore(
                slot, entry.name + STATE, seconds=_seconds_for(entry.size)
            )
        except SlotError as error:
            if not error.status:
                raise
            tokens = 0
        if tokens != entry.tokens:
            await self._cache.remove(entry.name)
            self._note_failure("llama-server does not accept a file")
            return False
        return True

    async def _try_out(self, valid: str, batch: Sequence[Entry]) -> None:
        """See whether llama-server uses what was restored, and remember it for this model."""
        entry = choice.probed(batch)
        if entry is None:
            return
        tokens = await self._cache.tokens_of(entry.name)
        try:
            prompt, cached = await self._client.compute(
                tokens[: -choice.PROBE_DROPS], seconds=PROBE_SECONDS
            )
        except SlotTimeout as error:
            await self._give_up_on(valid, str(error))
            return
        if choice.helps(prompt, cached):
            await self._cache.note_verdict(valid, helps=True)
            await self._restore_slot(list(batch).index(entry), entry)
        else:
            await self._give_up_on(valid, "it computes restored prompts again")

    async def _give_up_on(self, valid: str, reason: str) -> None:
        self._restored = []
        self._source = None
        await self._cache.note_verdict(valid, helps=False)
        _log.warning(
            "prompt_cache_useless",
            "PROMPT_CACHE is switched off for this model: llama-server cannot use saved prompts "
            "({reason}), as is usual for recurrent, hybrid, sliding-window and multimodal models",
            reason=reason,
        )

    def _note_failure(self, reason: str) -> None:
        self._cache.totals.restore_failures += 1
        self._cache.report("prompts were not restored", reason)

    # Saving -------------------------------------------------------------------------------------

    async def on_tick(self, activity: Activity) -> bool:
        """Save at a quiet moment after long prompts; whether something was saved."""
        if self._source is None:
            return False
        is_quiet = self._quiet.check(
            running=activity.running, responses=activity.responses, now=self._clock.now()
        )
        return is_quiet and await self.save(Moment.QUIET)

    async def save_for_replacement(self) -> bool:
        """As ``save``, for another engine that takes over."""
        return await self.save(Moment.REPLACEMENT)

    async def save(self, moment: Moment = Moment.STOP) -> bool:
        """Save the idle slots whose content is not on disk, the most recently used first.

        What takes longer than the time for *moment* is left.

        Returns:
            Whether anything was saved.
        """
        source = self._source
        if source is None:
            return False
        seconds = QUIET_SAVE_SECONDS if moment is Moment.QUIET else STOP_SAVE_SECONDS
        try:
            async with asyncio.timeout(seconds), self._lock:
                return await self._save(source, moment)
        except TimeoutError:
            self._cache.report("not all prompts were saved", f"{seconds:g} s are over")
        except (SlotError, OSError) as error:
            self._cache.report("prompts were not saved", str(error))
        return False

    async def until_saved(self) -> None:
        """Wait for a save that is under way."""
        async with self._lock:
            return

    async def _save(self, source: PromptSource, moment: Moment) -> bool:
        valid = await self._cache.validity(source)
        if valid is None or await self._cache.helps(valid) is False:
            return False
        slots = await self._slots_to_save(moment)
        if not slots:
            return False
        await self._save_slots(slots, valid, is_settled=moment is Moment.STOP)
        return True

    async def _slots_to_save(self, moment: Moment) -> list[SlotView]:
        slots = [_view(slot) for slot in await self._client.slots()]
        changed = self._attribution.look(slots, is_quiet=moment is not Moment.REPLACEMENT)
        if not changed:
            return []
        computed, seconds = await self._client.computed()
        self._rate = seconds / computed if computed else 0.0
        self._growth.look(computed, [slot.id for slot in changed])
        if moment is not Moment.QUIET:
            return changed
        worth = self._growth.is_worth_saving
        wanted = [slot for slot in changed if worth(slot.id, slot.tokens or 0)]
        if not wanted:
            await self._settle(is_settled=False)
        return wanted

    async def _save_slots(self, slots: Sequence[SlotView], valid: str, *, is_settled: bool) -> None:
        """Write the states of *slots*, and keep each once its owners are known.

        Args:
            slots: the most recently used first.
            valid: the name of what they depend on.
            is_settled: whether the gateway has reported all keys that were active.
        """
        written: list[tuple[SlotView, Entry]] = []
        try:
            now = wall_now()
            for rank, slot in enumerate(slots):
                # Their order is that of their use.
                entry = await self._write(slot, valid, now - rank / 1000)
                if entry is None:
                    continue
                written.append((slot, entry))
                if is_settled:
                    await self._commit(slot, entry)
                    written.pop()
            await self._settle(is_settled=is_settled)
            while written:
                await self._commit(*written[-1])
                written.pop()
        finally:
            for _, entry in written:
                await self._cache.discard(entry.name)

    async def _settle(self, *, is_settled: bool) -> None:
        """Wait until the gateway has reported the keys of all requests that had run."""
        if not is_settled:
            await self._clock.sleep(SETTLE_SECONDS)
        self._attribution.settle()

    async def _write(self, slot: SlotView, valid: str, used_at: float) -> Entry | None:
        """Have the engine write the state of *slot*."""
        if slot.tokens is not None and slot.tokens < MIN_TOKENS:
            return None
        name = os.urandom(8).hex()
        file_name = await self._cache.begin(name, slot.tokens, used_at)
        if file_name is None:
            self._cache.totals.save_failures += 1
            return None
        try:
            tokens, size = await self._client.save(slot.id, file_name, seconds=QUIET_SAVE_SECONDS)
        except SlotError as error:
            await self._cache.discard(name)
            if error.status == _NOT_SUPPORTED:
                await self._give_up_on(valid, str(error))
            elif error.status:
                self._cache.totals.save_failures += 1
                self._cache.report("a prompt was not saved", str(error))
            else:
                raise
            return None
        except asyncio.CancelledError:
            await self._cache.discard(name)
            raise
        return Entry(
            name,
            valid,
            tokens=tokens,
            size=size,
            used_at=used_at,
            owners=(),
            seconds=self._rate * tokens,
        )

    async def _commit(self, slot: SlotView, entry: Entry) -> None:
        owners = self._attribution.owners_of(slot)
        is_unknown = UNKNOWN in owners or not owners
        if is_unknown or entry.tokens < MIN_TOKENS or await self._cache.are_revoked(owners):
            await self._cache.discard(entry.name)
            self._attribution.on_saved(slot)
            return
        if await self._cache.commit(replace(entry, owners=owners)):
            self._attribution.on_saved(slot)
            self._growth.on_saved(slot.id)
            self._cache.totals.saves += 1
        else:
            self._cache.totals.save_failures += 1


def _view(slot: SlotState) -> SlotView:
    return SlotView(slot.id, slot.is_processing, slot.id_task, slot.tokens)


def _seconds_for(size: int) -> float:
    return _FIXED_SECONDS + size / _SLOWEST_BYTES_PER_SECOND
