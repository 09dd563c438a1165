"""Whether an engine lives, before a request is sent again that was lost with a connection.

A process that ends loses its connections before its listening socket: Linux closes what was opened
last first. Until then the kernel accepts connections for it, and with a GPU to release in between,
that can take seconds. A request that was sent again at once would be lost a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from llama_gguf.engines.probe import Finding
from llama_gguf.gateway.engine_tracker import EngineTracker

EVERY_SECONDS: Final = 0.25


class LivenessCheck:
    """Of one engine.

    Args:
        loop: of the gateway.
        tracker: of the engine.
        look: probes it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tracker: EngineTracker,
        look: Callable[[], Awaitable[Finding]],
    ) -> None:
        self._loop = loop
        self._tracker = tracker
        self.look = look
        self.report: Callable[[Finding], None] | None = None
        """Called with each finding in a gateway without a supervisor, which reports otherwise."""
        self._waiting: dict[object, Callable[[], None]] = {}
        self._task: asyncio.Task[None] | None = None

    def wait(self, request: object, on_done: Callable[[], None]) -> None:
        """Call *on_done*, later, when the engine responds or is known to have died."""
        self._waiting[request] = on_done
        if self._task is not None:
            return
        if self._is_known_to_be_dead():
            self._loop.call_soon(self._finish)
        else:
            self._task = self._loop.create_task(self._look_until_it_lives(), name="liveness")

    def leave(self, request: object) -> None:
        """*request* does not wait, or not any longer."""
        self._waiting.pop(request, None)
        if self._task is not None and not self._waiting:
            self._task.cancel()
            self._task = None

    @property
    def is_waited_for(self) -> bool:
        """Whether requests wait for the engine."""
        return bool(self._waiting)

    def release(self, keep: object = None) -> None:
        """End the wait of all but *keep*: there is another engine, or this one has gone."""
        released = [on_done for request, on_done in self._waiting.items() if request is not keep]
        self._waiting = {each: done for each, done in self._waiting.items() if each is keep}
        if self._task is not None and not self._waiting:
            self._task.cancel()
            self._task = None
        for on_done in released:
            self._loop.call_soon(on_done)

    async def _look_until_it_lives(self) -> None:
        while True:
            finding = await self.look()
            if self.report is not None:
                self.report(finding)
            if finding.serves:
                break
            await asyncio.sleep(EVERY_SECONDS)
        self._finish()

    def on_engine_change(self) -> None:
        """End the wait for an engine whose death is reported: the queue waits for the next one."""
        if self._task is not None and self._is_known_to_be_dead():
            self._task.cancel()
            self._finish()

    def _is_known_to_be_dead(self) -> bool:
        return self.report is None and not self._tracker.status.serves

    def _finish(self) -> None:
        self._task = None
        waiting, self._waiting = self._waiting, {}
        for on_done in waiting.values():
            on_done()
