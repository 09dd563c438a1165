"""Supervises gateway and llama-server: handles signals, and ends all children.

The listening socket is ours and the gateway inherits it, so that no connection is
refused while a gateway is replaced. How the engine is goes to the health server
and, over a socket pair, to the gateway; neither ever asks. What is asked of the
engine comes back on the same pair.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from llama_gguf.config.settings import Settings
from llama_gguf.engines.status import EngineState, EngineStatus
from llama_gguf.events import EventLog
from llama_gguf.supervisor import reaper
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.engine_run import TERM_SECONDS, EngineKeeper
from llama_gguf.supervisor.gateway_run import EXTRA_SECONDS, GatewayKeeper
from llama_gguf.supervisor.launch import Launch
from llama_gguf.supervisor.restart_policy import LEAVING

_log: Final = EventLog(__name__)


class Supervisor:
    """Owns the children from the first spawn to the last reap.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        environ: our own environment; the gateway gets it with the settings made explicit.
        listener: the gateway's listening socket.
        prepare: finds out how to start llama-server; may take long (a download).
        on_status: called with each new status of the engine.
        on_reopen: called when log files are to be opened anew.
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
        self._prepare = prepare
        self._on_status = on_status
        self._on_reopen = on_reopen
        self._stop_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()
        rng = random.SystemRandom().random
        self.engine = EngineKeeper(
            settings, publish=self._publish, is_leaving=lambda: self.is_leaving, rng=rng
        )
        self._gateway = GatewayKeeper(environ, listener, hear=self.engine.hear, rng=rng)
        self._gateway.tell(self.engine.status)

    # From outside -------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until asked to stop, or until a child is given up. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number, handler in self._signal_handlers().items():
            loop.add_signal_handler(number, handler)
        gateway = loop.create_task(self._gateway.keep(), name="keep the gateway")
        engine = loop.create_task(self.engine.keep(self._prepare), name="keep the engine")
        stopping = loop.create_task(self._stop_asked.wait(), name="await the order to stop")
        reaping = loop.create_task(reaper.keep_reaping(), name="reap orphans")
        try:
            done, _ = await asyncio.wait(
                [gateway, engine, stopping], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            await self._end(gateway, engine)
            stopping.cancel()
            reaping.cancel()
            for number in self._signal_handlers():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # else one more would spoil the exit status
        # A keeper ends by itself only when its child was given up, or could not be prepared.
        return max((keeper.result() for keeper in (gateway, engine) if keeper in done), default=0)

    def _signal_handlers(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: lambda: self._gateway.pass_on(signal.SIGHUP),
            signal.SIGUSR1: self._reopen_logs,
        }

    def stop(self) -> None:
        """Drain and leave; a second call hurries."""
        if self._stop_asked.is_set():
            _log.warning("stop_hurried", "Second signal to stop: running requests are cut")
            self._hurry_asked.set()
        self._stop_asked.set()

    @property
    def is_leaving(self) -> bool:
        """Whether we have been asked to leave, or have to."""
        return self._gateway.state in LEAVING

    @property
    def health_state(self) -> EngineState:
        """What platforms are told: unready from the moment we are asked to leave."""
        return EngineState.STOPPING if self.is_leaving else self.engine.status.state

    def _publish(self, status: EngineStatus) -> None:
        self._gateway.tell(status)
        self._on_status(status)

    def _reopen_logs(self) -> None:
        self._gateway.pass_on(signal.SIGUSR1)
        self.engine.reopen_log()
        self._on_reopen()

    # The end ------------------------------------------------------------------------------------

    async def _end(self, gateway: asyncio.Task[int], engine: asyncio.Task[int]) -> None:
        """Unready first, then the gateway drains, then the engine goes."""
        _log.info("stopping", "Stopping")
        self._gateway.leave()
        self._listener.close()  # the gateway has its own; ours would take connections for nobody
        if self.engine.child is None:  # it waits for its next try, or is about to be made
            await self._end_keeper(engine, None, 0.0)
            self.engine.leave()
        drain_seconds = self._settings.drain_timeout + EXTRA_SECONDS
        await self._end_keeper(gateway, self._gateway.child, drain_seconds, gently=True)
        if self.engine.child is not None:
            self.engine.leave()
        await self._end_keeper(engine, self.engine.child, TERM_SECONDS)

    async def _end_keeper(
        self,
        keeper: asyncio.Task[int],
        child: Child | None,
        term_seconds: float,
        *,
        gently: bool = False,
    ) -> None:
        """Stop *child* within *term_seconds*, and wait for its *keeper*.

        When we are asked again, it is killed; *gently*: it gets a second SIGTERM instead.
        """
        if child is None:
            keeper.cancel()
        else:
            hurrying = asyncio.get_running_loop().create_task(self._hurry(child, gently))
            await child.stop(term_seconds=term_seconds)
            hurrying.cancel()
        await asyncio.wait([keeper])

    async def _hurry(self, child: Child, gently: bool) -> None:
        await self._hurry_asked.wait()
        if gently:
            child.signal(signal.SIGTERM)
        else:
            child.kill_group()
