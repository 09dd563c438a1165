"""An engine's slots without an engine: they write and read real files."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from llama_gguf.engines.slot_client import SlotError, SlotState
from llama_gguf.prompt_cache import model_digest
from llama_gguf.prompt_cache.entry import HEADER_BYTES, TOKEN_BYTES, token_count, tokens_in
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.supervisor.launch import PromptSource
from llama_gguf.supervisor.managed_process import LoopClock
from llama_gguf.supervisor.prompt_keeper import PromptKeeper
from llama_gguf.supervisor.prompts import PromptCache
from tests.prompt_cache.states import state

T = TypeVar("T")


async def inline(work: Callable[[], T]) -> T:
    """As ``run_detached``, without a thread."""
    return work()


class FakeOwners:
    """As ``KeysFile``."""

    path = ""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def revoked(self, owners: Collection[str]) -> set[str]:
        return self.gone.intersection(owners)


class FakeSlots:
    """One life of an engine, as a ``SlotClient``. A conversation is a list of tokens."""

    def __init__(self, folder: Path, slots: int = 2, *, restore_seconds: float = 0.0) -> None:
        self._folder = folder
        self._tasks = itertools.count()
        self.held: list[tuple[int, ...]] = [() for _ in range(slots)]
        self.tasks: list[int | None] = [None] * slots
        self.busy: set[int] = set()
        self.ram: list[tuple[int, ...]] = []
        self.prompt_tokens = 0
        self.can_resume = True
        self.error: SlotError | None = None
        self.save_seconds = 0.0
        self._restore_seconds = restore_seconds
        self.calls: list[str] = []

    def ask(self, slot: int, tokens: Sequence[int]) -> int:
        """A request in *slot*; the number of tokens that are computed."""
        known = [each for each in (*self.held, *self.ram) if each[: len(tokens)] == tuple(tokens)]
        computed = 1 if known and self.can_resume else len(tokens)
        self.held[slot], self.tasks[slot] = tuple(tokens), next(self._tasks)
        self.prompt_tokens += computed
        return computed

    async def slots(self) -> list[SlotState]:
        self.calls.append("slots")
        return [
            SlotState(number, number in self.busy, self.tasks[number], len(tokens) or None)
            for number, tokens in enumerate(self.held)
        ]

    async def save(self, slot: int, file_name: str, *, seconds: float) -> tuple[int, int]:
        del seconds
        self.calls.append(f"save {slot}")
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.save_seconds)
        data = state(self.held[slot])
        (self._folder / file_name).write_bytes(data)
        return len(self.held[slot]), len(data)

    async def restore(self, slot: int, file_name: str, *, seconds: float) -> int:
        del seconds
        self.calls.append(f"restore {slot}")
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self._restore_seconds)
        data = (self._folder / file_name).read_bytes()
        count = token_count(data[:HEADER_BYTES])
        assert count is not None
        self.held[slot] = tokens_in(data[HEADER_BYTES : HEADER_BYTES + count * TOKEN_BYTES])
        return count

    async def compute(
        self, prompt: Sequence[int] | str, *, seconds: float = 0.0
    ) -> tuple[int, int]:
        del seconds
        if isinstance(prompt, str):
            self.ram += [held for held in self.held if held]
            return 1, 0
        computed = self.ask(0, prompt)
        return len(prompt), len(prompt) - computed

    async def computed(self) -> tuple[int, float]:
        return self.prompt_tokens, self.prompt_tokens / 100


class Box:
    """A machine with a folder of states, a model, and engines that come and go."""

    def __init__(self, path: Path, max_bytes: int = 1 << 20) -> None:
        self.folder = path / "cache"
        self.model = path / "model.gguf"
        self.model.write_bytes(b"weights")
        self.owners = FakeOwners()
        self._max_bytes = max_bytes
        self.is_leaving = False
        self.restore_seconds = 0.0
        """Of the slots of engines that are started from now on."""
        self.serve()

    def serve(self) -> None:
        """A new run of `serve`."""
        self.store = Folder(str(self.folder), self._max_bytes, "box")
        with contextlib.suppress(OSError):
            self.store.open()
        self.cache = PromptCache(self.store, self.owners, inline)

    def source(self, build: str = "b1", ram_bytes: int = 1 << 20) -> PromptSource:
        files = (str(self.model),)
        return PromptSource(files, model_digest.identity(files), build, ("--x",), ram_bytes)

    async def engine(
        self, slots: int = 2, source: PromptSource | None = None, client: FakeSlots | None = None
    ) -> tuple[PromptKeeper, FakeSlots]:
        """An engine that has just loaded the model, before its first request."""
        client = client or FakeSlots(self.folder, slots)
        keeper = PromptKeeper(self.cache, client, LoopClock())
        await keeper.restore(source or self.source(), is_leaving=lambda: self.is_leaving)
        await asyncio.sleep(1)  # until the model's digest is known
        return keeper, client

    async def saved(self, *conversations: Sequence[int]) -> tuple[PromptKeeper, FakeSlots]:
        """An engine that has worked on *conversations* of one key, which are saved."""
        keeper, slots = await self.engine(slots=max(len(conversations), 2))
        keeper.on_owners(["ann:1"])
        for number, tokens in enumerate(conversations):
            slots.ask(number, tokens)
        assert await keeper.save()
        return keeper, slots
