"""Supervises gateway and llama-server: handles signals, and ends all children.

The listening socket is ours and the gateway inherits it, so that no connection is
refused while a gateway is replaced. The engine's status is sent to the health server
and, over a socket pair, to the gateway, so that neither has to request it. The gateway
reports its activity on the same pair.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from llama_gguf.config.settings import Settings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.events import EventLog
from llama_gguf.net.terminal import Terminal
from llama_gguf.supervisor import reaper, states
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.engine_log import open_engine_log
from llama_gguf.supervisor.engine_run import TERM_SECONDS, EngineManager
from llama_gguf.supervisor.gateway_run import EXTRA_SECONDS, GatewayManager
from llama_gguf.supervisor.launch import Launch
from llama_gguf.supervisor.states import Event, SupervisorState
from llama_gguf.transitions import after

_log: Final = EventLog(__name__)


class Supervisor:
    """Owns the children from the first spawn to the last reaping.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        environ: our own environment; the gateway gets it with the settings made explicit.
        listener: the gateway's listening socket.
        prepare: determines how llama-server is started; may take long (a download).
        on_status: called with each new status of the engine.
        on_reopen: called when log files are to be reopened.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        listener: socket.socket,
        prepare: Callable[[], Awaitable[Launch]],
        on_status: Callable[[EngineStatus], None],
        on_reopen: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._on_status = on_status
        self._on_reopen = on_reopen
        self.state = SupervisorState.STARTING
        self._stop_requested = asyncio.Event()
        self._hurry_requested = asyncio.Event()
        self._terminal = Terminal()
        rng = random.SystemRandom().random
        self._engine = EngineManager(
            "llama-server",
            EngineAddress.of(settings.upstream),
            settings=settings.supervision,
            prepare=prepare,
            open_log=lambda: open_engine_log(settings.logs),
            publish=self._publish,
            is_stopping=lambda: self.is_leaving,
            rng=rng,
        )
        self._gateway = GatewayManager(
            environ, listener, on_activity=self._engine.on_activity, rng=rng
        )
        self._gateway.send_status(self._engine.status)

    # From outside -------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until a signal, or until a child is given up. Returns the exit status."""
        loop = asyncio.get_running_loop()
        self._move(Event.STARTED)
        for number, handler in self._signal_handlers().items():
            loop.add_signal_handler(number, handler)
        gateway = loop.create_task(self._gateway.run(), name="manage the gateway")
        engine = loop.create_task(self._engine.run(), name="manage the engine")
        stopping = loop.create_task(self._stop_requested.wait(), name="await a request to stop")
        reaping = loop.create_task(reaper.keep_reaping(), name="reap orphans")
        try:
            done, _ = await asyncio.wait(
                [gateway, engine, stopping], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if self.state is SupervisorState.RUNNING:
                self._move(Event.GIVEN_UP)
            await self._end(gateway, engine)
            self._move(Event.ENDED)
            stopping.cancel()
            reaping.cancel()
            for number in self._signal_handlers():
                loop.remove_signal_handler(number)
                # Otherwise one more signal would change the exit status.
                signal.signal(number, signal.SIG_IGN)
        # A task ends by itself only if its process was given up, or could not be prepared.
        return max((task.result() for task in (gateway, engine) if task in done), default=0)

    def _move(self, event: Event) -> None:
        self.state = after(states.TRANSITIONS, self.state, event)

    def _signal_handlers(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR1: self._reopen_logs,
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
    def is_leaving(self) -> bool:
        """Whether nothing is started any more."""
        return self.state in states.STOPPING

    @property
    def health_state(self) -> ChildState:
        """The state for platforms: unready as soon as we stop."""
        return ChildState.STOPPING if self.is_leaving else self._engine.status.state

    def report_preparation(self, detail: str, progress: float | None) -> None:
        """Publish how far the preparation of the first start is."""
        self._engine.report(detail, progress)

    def _publish(self, status: EngineStatus) -> None:
        self._gateway.send_status(status)
        self._on_status(status)

    def _reopen_logs(self) -> None:
        self._gateway.pass_on(signal.SIGUSR1)
        self._engine.reopen_log()
        self._on_reopen()

    # The end ------------------------------------------------------------------------------------

    async def _end(self, gateway: asyncio.Task[int], engine: asyncio.Task[int]) -> None:
        """First the gateway drains, then the engine is stopped."""
        _log.info("stopping", "Stopping")
        self._gateway.leave()
        # The gateway has its own copy; no process would accept connections from ours.
        self._listener.close()
        if self._engine.child is None:  # it is not spawned yet, waits for its restart, or is asleep
            await self._end_process(engine, None, 0.0)
            self._engine.leave()
        drain_seconds = self._settings.process.drain_timeout + EXTRA_SECONDS
        await self._end_process(gateway, self._gateway.child, drain_seconds, gently=True)
        if self._engine.child is not None:
            self._engine.leave()
        await self._end_process(engine, self._engine.child, TERM_SECONDS)

    async def _end_process(
        self,
        managing: asyncio.Task[int],
        child: Child | None,
        term_seconds: float,
        *,
        gently: bool = False,
    ) -> None:
        """Stop *child* within *term_seconds*, and wait for the task that manages it.

        On a second request to stop it is killed; *gently*: it gets a second SIGTERM instead.
        """
        if child is None:
            managing.cancel()
        else:
            hurrying = asyncio.get_running_loop().create_task(self._hurry(child, gently))
            await child.stop(term_seconds=term_seconds)
            hurrying.cancel()
        await asyncio.wait([managing])

    async def _hurry(self, child: Child, gently: bool) -> None:
        await self._hurry_requested.wait()
        if gently:
            child.signal(signal.SIGTERM)
        else:
            child.kill_group()
