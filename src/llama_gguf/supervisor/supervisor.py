"""Supervises gateway and llama-server: handles signals, and ends all children.

The listening socket is ours and the gateway inherits it, so that no connection is
refused while a gateway is replaced. The engine's status is sent to the health server
and, over a socket pair, to the gateway, so that neither has to request it. The gateway
reports its activity on the same pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from llama_gguf.config.settings import Settings
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.net.terminal import Terminal
from llama_gguf.supervisor import reaper, states
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.engine_log import open_engine_log
from llama_gguf.supervisor.engine_run import EngineManager
from llama_gguf.supervisor.gateway_run import EXTRA_SECONDS, GatewayManager
from llama_gguf.supervisor.launch import Launch
from llama_gguf.supervisor.local_fleet import LocalFleet, Setup
from llama_gguf.supervisor.states import Event, SupervisorState
from llama_gguf.transitions import after

if TYPE_CHECKING:
    from llama_gguf.supervisor.prompts import PromptCache

_log: Final = EventLog(__name__)

HURRY_SECONDS: Final = 0.5
"""Between the SIGTERMs to a gateway that is to cut its requests."""

OnProgress = Callable[[str], None]
PrepareAgain = Callable[[OnProgress], Awaitable[Sequence[Setup]]]


def _random() -> float:
    """From 0 to 1, for the delays before restarts. The module ``random`` would take 0.1 MB."""
    return int.from_bytes(os.urandom(4)) / (1 << 32)


class Supervisor:
    """Owns the children from the first spawn to the last reaping.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        environ: our own environment; the gateway gets it with the settings made explicit.
        listener: the gateway's listening socket.
        prepare: determines how each llama-server is started; may take long (a download).
        prepare_again: reads the settings again, and determines the same for a rolling restart.
        on_status: called with each new status of the engine.
        on_reopen: called when log files are to be reopened.
        prompts: keeps the prompts of the engines; None if PROMPT_CACHE is off.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        listener: socket.socket,
        prepare: Callable[[], Awaitable[Sequence[Launch]]],
        prepare_again: PrepareAgain,
        on_status: Callable[[EngineStatus], None],
        on_reopen: Callable[[], None],
        prompts: PromptCache | None = None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._on_status = on_status
        self._on_reopen = on_reopen
        self.state = SupervisorState.STARTING
        self._stop_requested = asyncio.Event()
        self._hurry_requested = asyncio.Event()
        self._terminal = Terminal()
        self._prepare_again = prepare_again
        self._fleet = LocalFleet(
            settings,
            prepare=prepare,
            open_log=lambda replica: open_engine_log(settings.logs, replica),
            publish=self._publish,
            is_stopping=lambda: self.is_leaving,
            rng=_random,
            prompts=prompts,
        )
        self._gateway = GatewayManager(
            environ,
            listener,
            on_activity=self._fleet.on_activity,
            on_owners=self._fleet.on_owners,
            rng=_random,
        )
        self._gateway.send_status(self._fleet.status)
        self._restarting: asyncio.Task[str] | None = None

    # From outside -------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until a signal, or until a child is given up. Returns the exit status."""
        loop = asyncio.get_running_loop()
        self._move(Event.STARTED)
        for number, handler in self._signal_handlers().items():
            loop.add_signal_handler(number, handler)
        gateway = loop.create_task(self._gateway.run(), name="manage the gateway")
        engines = loop.create_task(self._fleet.run(), name="manage the engines")
        stopping = loop.create_task(self._stop_requested.wait(), name="await a request to stop")
        reaping = loop.create_task(reaper.keep_reaping(), name="reap orphans")
        try:
            done, _ = await asyncio.wait(
                [gateway, engines, stopping], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if self.state is SupervisorState.RUNNING:
                self._move(Event.GIVEN_UP)
            await self._end(gateway, engines)
            self._move(Event.ENDED)
            stopping.cancel()
            reaping.cancel()
            for number in self._signal_handlers():
                loop.remove_signal_handler(number)
                # Otherwise one more signal would change the exit status.
                signal.signal(number, signal.SIG_IGN)
        # A task ends by itself only if its process was given up, or could not be prepared.
        return max((task.result() for task in (gateway, engines) if task in done), default=0)

    def _move(self, event: Event) -> None:
        self.state = after(states.TRANSITIONS, self.state, event)

    def _signal_handlers(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR1: self._reopen_logs,
            signal.SIGUSR2: self._on_restart_signal,
        }

    def _on_hangup(self) -> None:
        """Stop if the terminal was closed, else let the gateway reload."""
        if not self._terminal.is_gone():
            self._gateway.pass_on(signal.SIGHUP)
        elif not self.is_leaving:  # the shell and the kernel may send one signal each
            _log.info("terminal_closed", "The terminal was closed")
            self.stop()

    def stop(self) -> None:
        """Drain and stop; a second call cuts running requests."""
        self._move(Event.STOP)
        if self.state is SupervisorState.HURRYING:
            _log.warning("stop_hurried", "Second signal to stop: running requests are cut")
            self._hurry_requested.set()
        self._stop_requested.set()

    @property
    def engines(self) -> Sequence[EngineManager]:
        """In the order of their replicas; during a replacement, both of a replica."""
        return [member.manager for member in self._fleet.members]

    @property
    def gateway(self) -> GatewayManager:
        return self._gateway

    # A rolling restart --------------------------------------------------------------------------

    def _on_restart_signal(self) -> None:
        async def restart() -> None:
            with contextlib.suppress(UserError):  # it has been logged
                await self.restart()

        self._by_signal = asyncio.get_running_loop().create_task(restart(), name="restart")

    async def restart(self, on_progress: OnProgress = lambda text: None) -> str:
        """Read the settings again, and replace the engines one at a time.

        It continues if the caller is cancelled.

        Args:
            on_progress: called with each step, a sentence.

        Returns:
            What has been done, a sentence.

        Raises:
            UserError: it was refused, or an engine did not come up; the message states what serves.
        """
        wrong = ""
        if self.is_leaving:
            wrong = "`serve` is stopping"
        elif not self._fleet.is_prepared:
            wrong = "`serve` is starting"
        elif self._restarting is not None:
            wrong = "a rolling restart is running already"
        if wrong:
            _log.warning("restart_refused", "No rolling restart: {reason}", reason=wrong)
            raise UserError(f"No rolling restart: {wrong}.")

        def report(text: str) -> None:
            _log.info("restart_step", "{step}", step=text)
            on_progress(text)

        self._restarting = task = asyncio.get_running_loop().create_task(
            self._restart(report), name="rolling restart"
        )
        try:
            await asyncio.wait([task])
        finally:
            task.add_done_callback(self._on_restarted)
        if task.cancelled():
            raise UserError("the rolling restart has ended: `serve` is stopping.")
        return task.result()

    def _on_restarted(self, task: asyncio.Task[str]) -> None:
        self._restarting = None
        if not task.cancelled():
            task.exception()  # its caller may have been cancelled

    async def _restart(self, report: OnProgress) -> str:
        report("Reading the settings again")
        try:
            setups = await self._prepare_again(report)
            await self._fleet.replace_all(
                setups,
                drain_seconds=self._settings.process.drain_timeout,
                on_progress=report,
            )
        except UserError as error:
            _log.error(
                "restart_failed", "The rolling restart has failed: {reason}", reason=str(error)
            )
            raise
        count = len(setups)
        text = f"Rolling restart complete: {count} {'replica' if count == 1 else 'replicas'}"
        _log.info("restart_complete", "{text}", text=text)
        return text

    @property
    def is_leaving(self) -> bool:
        """Whether nothing is started any more."""
        return self.state in states.STOPPING

    @property
    def health_state(self) -> ChildState:
        """The state for platforms: unready as soon as we stop."""
        return ChildState.STOPPING if self.is_leaving else self._fleet.status.state

    def report_preparation(self, detail: str, progress: float | None) -> None:
        """Publish how far the preparation of the first start is."""
        self._fleet.report(detail, progress)

    def _publish(self, status: EngineStatus) -> None:
        self._gateway.send_status(status)
        self._on_status(self._fleet.status)

    def _reopen_logs(self) -> None:
        self._gateway.pass_on(signal.SIGUSR1)
        self._fleet.reopen_logs()
        self._on_reopen()

    # The end ------------------------------------------------------------------------------------

    async def _end(self, gateway: asyncio.Task[int], engines: asyncio.Task[int]) -> None:
        """First the gateway drains, then the engines are stopped."""
        _log.info("stopping", "Stopping")
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        self._gateway.leave()
        # The gateway has its own copy; no process would accept connections from ours.
        self._listener.close()
        await self._fleet.stop_idle()
        drain_seconds = self._settings.process.drain_timeout + EXTRA_SECONDS
        await self._end_gateway(gateway, self._gateway.child, drain_seconds)
        await self._fleet.stop(self._hurry_requested)
        await asyncio.wait([engines])

    async def _end_gateway(
        self, managing: asyncio.Task[int], child: Child | None, term_seconds: float
    ) -> None:
        """Stop *child* within *term_seconds*, and wait for the task that manages it.

        On a second request to stop, it gets a second SIGTERM.
        """
        if child is None:
            managing.cancel()
        else:
            hurrying = asyncio.get_running_loop().create_task(self._hurry(child))
            await child.stop(term_seconds=term_seconds)
            hurrying.cancel()
        await asyncio.wait([managing])

    async def _hurry(self, child: Child) -> None:
        await self._hurry_requested.wait()
        while True:  # two signals that a process gets at once are one: signal(7)
            child.signal(signal.SIGTERM)
            await asyncio.sleep(HURRY_SECONDS)
