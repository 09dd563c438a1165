"""Reads the memory of the GPUs while someone looks at the dashboard, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from llama_gguf.engines import gpu_memory
from llama_gguf.engines.gpu_memory import GpuUse
from llama_gguf.files.programs import find_program
from llama_gguf.net.threads import run_detached

EVERY_SECONDS: Final = 10.0


class GpuReader:
    """Of one gateway.

    Args:
        loop: of the gateway.
        find: returns the path of nvidia-smi; None if there is none. Called once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        find: Callable[[], str | None] = lambda: find_program("nvidia-smi"),
    ) -> None:
        self._loop = loop
        self._find = find
        self._program: str | None = None
        self._has_looked = False
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None
        self.latest: tuple[GpuUse, ...] = ()

    def view(self, now: float) -> list[dict[str, object]]:
        """The latest values, for programs; they are read again if they are old."""
        if not self._has_looked:
            self._has_looked = True
            self._program = self._find()
            self._read_at = now - EVERY_SECONDS
        if self._program is not None and now >= self._read_at + EVERY_SECONDS:
            if self._reading is None or self._reading.done():  # else it hangs
                self._reading = self._loop.create_task(self._read(self._program), name="read GPUs")
            self._read_at = now
        return [{**vars(gpu)} for gpu in self.latest]

    async def _read(self, program: str) -> None:
        self.latest = await run_detached(lambda: gpu_memory.read(program))
