"""Keeps one process running: spawns, watches, reaps and restarts it, or gives up on it.

llama-server and the gateway are subclasses, which add what is particular: how the process is
spawned, when it has to be ended, and what is logged. ``restart_policy.py`` decides what follows a
death. A finished life is a frozen ``Life``; nothing of it is kept in attributes.
"""

from __future__ import annotations

import abc
import asyncio
import enum
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

from llama_gguf.engines import exit_reasons
from llama_gguf.engines.status import ChildState
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.restart_policy import LEAVING, Event, GiveUp, RestartPolicy
from llama_gguf.values import Value


class Reason(enum.Enum):
    """Why a life ended. The values are the labels by which restarts are counted."""

    CRASH = "crash"  # it died by itself
    STALL = "stall"  # it made no progress while loading
    HANG = "hang"  # it did not respond, or sent nothing on any request
    IDLE = "idle"  # no request needed it


class EndReason(Value):
    """The reason to end a process that runs."""

    reason: Reason
    term_seconds: float
    """From SIGTERM to SIGKILL."""
    explanation: str = ""
    advice: str = ""


class Life(Value):
    """A finished life of a process, from its spawn to its reaping. Times are of the ``Clock``."""

    pid: int | None
    """None if it could not be spawned: see ``spawn_error``."""
    returncode: int
    """As of ``subprocess``: below zero for a signal."""
    spawned_at: float
    ended_at: float
    ready_since: float | None = None
    """None if it was never ready."""
    end_reason: EndReason | None = None
    """Why it was ended; None if it died by itself."""
    last_lines: tuple[str, ...] = ()
    was_out_of_memory: bool = False
    spawn_error: str = ""

    @property
    def seconds(self) -> float:
        return self.ended_at - self.spawned_at

    @property
    def reason(self) -> Reason:
        return Reason.CRASH if self.end_reason is None else self.end_reason.reason

    @property
    def exit_status(self) -> int:
        """The exit status of `serve` if this was the last life; never 0."""
        return exit_reasons.exit_status(self.returncode)

    @property
    def status_text(self) -> str:
        return exit_reasons.status_text(self.returncode)


class Clock(Protocol):
    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class LoopClock:
    """The clock of the running event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManagedProcess(abc.ABC):
    """One process at a time, restarted until it is given up or ``leave`` is called.

    Args:
        policy: decides when it is restarted; holds its state.
        clock: for restarts and watchdogs.
    """

    def __init__(self, policy: RestartPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._watching: asyncio.Task[EndReason | None] | None = None
        self.child: Child | None = None

    @property
    def state(self) -> ChildState:
        return self._policy.state

    async def run(self) -> int:
        """Keep it running. Returns the exit status: 0 after ``leave``."""
        while self.state not in LEAVING:
            await self._before_start()
            if self.state in LEAVING:
                break
            life = await self._live()
            if self.state in LEAVING:
                break
            if life.reason is Reason.IDLE:
                await self._until_requested()
                continue
            now = self._clock.now()
            decision = self._policy.died(life.exit_status, now, reason=life.reason.value)
            self._on_death(life)
            if self._is_stopping():
                break
            if isinstance(decision, GiveUp):
                self._on_given_up(decision.exit_status)
                return decision.exit_status
            seconds = decision.when - self._clock.now()
            self._on_restart_due(seconds)
            await self._clock.sleep(seconds)
        self.leave()
        return 0

    def leave(self) -> None:
        """Start no other process; the caller stops the one that runs."""
        if self.state not in LEAVING:
            self._move(Event.STOP)
        if self._watching is not None:
            self._watching.cancel()  # a slow stop is neither a hang nor a load
        if self.child is None and self.state is ChildState.STOPPING:
            self._move(Event.GONE)

    async def _live(self) -> Life:
        """One life, from spawn to reaping."""
        spawned_at = self._clock.now()
        self._move(Event.SPAWNED)
        async with AsyncExitStack() as stack:
            try:
                child = await stack.enter_async_context(self._process())
            except OSError as error:
                return Life(
                    pid=None,
                    returncode=1,
                    spawned_at=spawned_at,
                    ended_at=self._clock.now(),
                    spawn_error=error.strerror or str(error),
                )
            self.child = child
            async with asyncio.TaskGroup() as group:
                self._watching = watching = group.create_task(self._watch(child))
                ending = group.create_task(self._end(child, watching))
                await child.wait()
                ended_at, ready_since = self._clock.now(), self._policy.serves_since
                is_decided = watching.done() and not watching.cancelled()
                end_reason = watching.result() if is_decided else None
                is_idle = end_reason is not None and end_reason.reason is Reason.IDLE
                # At once, before its output is read to the end: a request sent now is lost.
                if self.state not in LEAVING and not is_idle:
                    self._move(Event.DIED)
                watching.cancel()
                ending.cancel()
        self._watching = self.child = None
        return Life(
            pid=child.pid,
            returncode=child.returncode,
            spawned_at=spawned_at,
            ended_at=ended_at,
            ready_since=ready_since,
            end_reason=end_reason,
            last_lines=tuple(child.last_lines),
            was_out_of_memory=child.was_out_of_memory,
        )

    async def _end(self, child: Child, watching: asyncio.Task[EndReason | None]) -> None:
        """Stop *child* once it is found that it has to be ended."""
        end_reason = await watching
        if end_reason is None or self.state in LEAVING:
            return
        if end_reason.reason is not Reason.IDLE:
            self._move(Event.HANGS, detail=end_reason.explanation)
        await child.stop(term_seconds=end_reason.term_seconds)

    # What is particular -------------------------------------------------------------------------

    async def _before_start(self) -> None:  # noqa: B027 - most need nothing
        """Called before each start, in the state that precedes it."""

    @abc.abstractmethod
    def _process(self) -> AbstractAsyncContextManager[Child]:
        """A new process; the context ends after its death, with everything that belongs to it.

        Raises:
            OSError: it cannot be started now. Counts as a death.
        """

    async def _watch(self, child: Child) -> EndReason | None:
        """Why *child* has to be ended, once it has to be. Cancelled at its death."""
        del child
        return None

    def _move(self, event: Event, *, detail: str = "") -> None:
        """Change the state on *event*; *detail* is the reason, for users."""
        del detail
        self._policy.on(event, self._clock.now())

    def _is_stopping(self) -> bool:
        """Whether `serve` is stopping, so that a process that has died is not restarted."""
        return False

    async def _until_requested(self) -> None:
        """Wait until a request needs it, after a life that ended with ``Reason.IDLE``."""
        raise NotImplementedError

    @abc.abstractmethod
    def _on_death(self, life: Life) -> None:
        """Log a death; the policy has decided."""

    @abc.abstractmethod
    def _on_given_up(self, exit_status: int) -> None: ...

    def _on_restart_due(self, seconds: float) -> None:
        """Called before the wait of *seconds* that precedes a restart."""
        del seconds
