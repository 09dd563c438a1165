"""Runs what ``core/restart.py`` decides, for two children: the gateway and llama-server.

The listening socket is ours and the gateway inherits it, so that no connection is
refused while a gateway is replaced. How the engine is goes to the health server
and, over a socket pair, to the gateway; neither ever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from llama_gguf.core import deaths
from llama_gguf.core.engine import EngineState, EngineStatus
from llama_gguf.core.restart import Event, GiveUp, RestartPolicy, StallWatch
from llama_gguf.core.settings import Settings
from llama_gguf.gateway.server import listen
from llama_gguf.gateway.shared import wall_now
from llama_gguf.probe import Finding, Probe
from llama_gguf.supervisor.child import Child, spawn
from llama_gguf.supervisor.engine_log import EngineLog

_log: Final = logging.getLogger(__name__)

PROBE_LOADING_SECONDS: Final = 0.25
LAST_WORDS_SECONDS: Final = 1.0
ENGINE_TERM_SECONDS: Final = 10.0
"""llama-server ignores SIGTERM while a request is in flight; after this, SIGKILL."""
GATEWAY_EXTRA_SECONDS: Final = 5.0
"""Beyond DRAIN_TIMEOUT, for the gateway to leave by itself."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How llama-server is started."""

    argv: list[str]
    environ: Mapping[str, str]


class Supervisor:
    """Owns the children from the first spawn to the last reap.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        environ: our own environment; the gateway gets it with the settings made explicit.
        listener: the gateway's listening socket.
        prepare: finds out how to start llama-server; may take long (a download).
        on_ready: called once, when the model is served for the first time.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        listener: socket.socket,
        prepare: Callable[[], Awaitable[Launch]],
        on_ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._listener = listener
        self._prepare = prepare
        self._on_ready = on_ready
        self._probe = Probe(settings)
        self._engine: Child | None = None
        self._gateway: Child | None = None
        self._channel: socket.socket | None = None
        self._is_stopping = False
        self._stop_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()
        self._has_been_ready = False
        self._is_gateway_up = False
        self._hup_waits = False
        self.status = EngineStatus(EngineState.STARTING, since=wall_now())

    # From outside -------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until asked to stop, or until a child is given up. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on_hup)
        keepers = [
            loop.create_task(self._keep_gateway(), name="keep the gateway"),
            loop.create_task(self._keep_engine(), name="keep the engine"),
        ]
        stopping = loop.create_task(self._stop_asked.wait(), name="await the order to stop")
        try:
            done, _ = await asyncio.wait([*keepers, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._stop_children(keepers)
            stopping.cancel()
        # A keeper ends by itself only when its child was given up, or could not be prepared.
        return max((keeper.result() for keeper in keepers if keeper in done), default=0)

    def stop(self) -> None:
        """Drain and leave; a second call hurries."""
        if self._stop_asked.is_set():
            _log.warning("asked again: what still runs is cut")
            self._hurry_asked.set()
        self._stop_asked.set()

    def tell_progress(self, text: str) -> None:
        """Let /health say how far that has come which the engine waits for, a download say."""
        self._publish(self.status.state, detail=text)

    @property
    def health_state(self) -> EngineState:
        """What platforms are told: unready from the moment we are asked to leave."""
        return EngineState.STOPPING if self._is_stopping else self.status.state

    def _pass_on_hup(self) -> None:
        # Before it accepts connections it has no handler yet, and would die of it.
        if self._gateway is not None and self._is_gateway_up:
            self._gateway.signal(signal.SIGHUP)
        else:
            self._hup_waits = True

    # The engine ---------------------------------------------------------------------------------

    async def _keep_engine(self) -> int:
        # A model that could not be loaded the first time will not be better the second.
        policy = RestartPolicy(max_deaths=self._settings.max_restarts, max_first_deaths=0)
        launch = await self._prepare()
        loop = asyncio.get_running_loop()
        while True:
            child = await self._run_engine(policy, launch)
            if self._is_stopping:
                return 0
            decision = policy.died(deaths.exit_status(child.returncode), loop.time())
            self._publish(policy.state, detail=_explain(child))
            if isinstance(decision, GiveUp):
                _log.error("llama-server is given up")
                return decision.exit_status
            _log.info("llama-server is started again in %.1f s", decision.when - loop.time())
            await asyncio.sleep(decision.when - loop.time())

    async def _run_engine(self, policy: RestartPolicy, launch: Launch) -> Child:
        """One life of llama-server, from spawn to reap."""
        log = EngineLog(self._settings)
        self._check_address()
        child = await spawn("llama-server", launch.argv, environ=launch.environ, reads_output=True)
        self._engine = child
        self._publish(policy.on(Event.SPAWNED))
        _log.info("llama-server started as process %d; its output is in %s", child.pid, log.path)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(child.read_output(log.write))
            watching = group.create_task(self._watch_engine(child, policy))
            await child.wait()
            watching.cancel()
            child.kill_group()  # what it may have started
            # Its last words; a helper that has left the group may hold the pipe open for ever.
            await asyncio.wait([reading], timeout=LAST_WORDS_SECONDS)
            reading.cancel()
        log.close()
        self._engine = None
        _remove_socket(self._settings.backend_socket)
        return child

    def _check_address(self) -> None:
        """Make sure that nobody else is where the engine will be: we would take it for ours.

        Raises:
            UserError: the port is taken.
        """
        settings = self._settings
        if settings.backend_socket:
            _remove_socket(settings.backend_socket)
        else:
            listen(settings.backend_host, settings.port_backend, "PORT_BACKEND").close()

    async def _watch_engine(self, child: Child, policy: RestartPolicy) -> None:
        """Wait until it serves; end it when it has stopped moving before that."""
        stall = self._settings.startup_stall_timeout
        stall_watch = StallWatch(stall)
        loop = asyncio.get_running_loop()
        while (finding := await self._probe.look()).state is not EngineState.READY:
            if stall_watch.is_stalled(child.progress(), loop.time()):
                child.ended_because = f"It showed no sign of progress for {stall:g} seconds."
                child.kill_group()
                return
            await asyncio.sleep(PROBE_LOADING_SECONDS)
        self._now_serves(policy, finding)

    def _now_serves(self, policy: RestartPolicy, finding: Finding) -> None:
        self.status = replace(self.status, slots=finding.slots, model=finding.model)
        loading_since = self.status.since
        self._publish(policy.on(Event.SERVES))
        _log.info("the model is ready after %.1f s", self.status.since - loading_since)
        if not self._has_been_ready and not self._is_stopping:
            self._has_been_ready = True
            self._on_ready()

    # The gateway --------------------------------------------------------------------------------

    async def _keep_gateway(self) -> int:
        policy = RestartPolicy(first_delay=0.1, max_delay=10.0, max_first_deaths=0)
        loop = asyncio.get_running_loop()
        while True:
            returncode = (await self._run_gateway(policy)).returncode
            if self._is_stopping:
                return 0
            decision = policy.died(deaths.exit_status(returncode), loop.time())
            _log.error("the gateway died (%s)", deaths.status_text(returncode))
            if isinstance(decision, GiveUp):
                return decision.exit_status
            await asyncio.sleep(decision.when - loop.time())

    async def _run_gateway(self, policy: RestartPolicy) -> Child:
        """One life of the gateway, from spawn to reap."""
        ours, theirs = socket.socketpair()
        fds = (self._listener.fileno(), theirs.fileno())
        argv = [sys.executable, "-m", "llama_gguf", "gateway"]
        argv += ["--listen-fd", str(fds[0]), "--channel-fd", str(fds[1])]
        with ours:
            with theirs:
                child = await spawn("gateway", argv, environ=self._environ, pass_fds=fds)
            ours.setblocking(False)
            self._gateway, self._channel = child, ours
            policy.on(Event.SPAWNED)
            self._tell_gateway()
            async with asyncio.TaskGroup() as group:
                greeting = group.create_task(self._await_greeting(ours, policy))
                await child.wait()
                greeting.cancel()
            self._gateway = self._channel = None
            self._is_gateway_up = False
        return child

    async def _await_greeting(self, channel: socket.socket, policy: RestartPolicy) -> None:
        """The gateway's first byte says that it accepts connections."""
        with contextlib.suppress(ConnectionError):  # it died with our news unread
            if await asyncio.get_running_loop().sock_recv(channel, 1):
                policy.on(Event.SERVES)
                self._is_gateway_up = True
                if self._hup_waits:
                    self._pass_on_hup()
                self._hup_waits = False

    # How it is ----------------------------------------------------------------------------------

    def _publish(self, state: EngineState, *, detail: str = "") -> None:
        self.status = self.status.moved(state, wall_now(), detail=detail)
        self._tell_gateway()

    def _tell_gateway(self) -> None:
        if self._channel is None:
            return
        # A status is a few hundred bytes; a pair that cannot take them has a dead end.
        with contextlib.suppress(OSError):
            self._channel.send(self.status.to_line())

    # The end ------------------------------------------------------------------------------------

    async def _stop_children(self, keepers: list[asyncio.Task[int]]) -> None:
        """Unready first, then the gateway drains, then the engine goes."""
        _log.info("stopping")
        self._is_stopping = True
        self._listener.close()  # the gateway has its own; ours would take connections for nobody
        gateway, drain_seconds = self._gateway, self._settings.drain_timeout
        if gateway is not None:
            seconds = drain_seconds + GATEWAY_EXTRA_SECONDS
            await self._stop_child(gateway, seconds, lambda: gateway.signal(signal.SIGTERM))
        engine = self._engine
        if engine is not None:
            await self._stop_child(engine, ENGINE_TERM_SECONDS, engine.kill_group)
        for keeper in keepers:  # one may wait for its next try, or be about to spawn
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for child in (self._gateway, self._engine):
            if child is not None:
                child.kill_group()
                await child.wait()

    async def _stop_child(
        self, child: Child, term_seconds: float, hurry: Callable[[], None]
    ) -> None:
        """Stop *child* within *term_seconds*; *hurry* is called when we are asked again."""
        async with asyncio.TaskGroup() as group:
            hurrying = group.create_task(_until(self._hurry_asked, hurry))
            await child.stop(term_seconds=term_seconds)
            hurrying.cancel()


async def _until(event: asyncio.Event, then: Callable[[], None]) -> None:
    await event.wait()
    then()


def _remove_socket(path: str) -> None:
    """Remove a socket that an engine has left behind: the next one could not bind to it."""
    if path:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)


def _explain(child: Child) -> str:
    """Say in the log why llama-server died; returns it in one sentence."""
    reason, advice = deaths.explain(child.returncode, child.last_lines)
    if child.ended_because:
        reason, advice = child.ended_because, "See STARTUP_STALL_TIMEOUT, and its last lines."
    status = deaths.status_text(child.returncode)
    lines = "".join(f"\n    {line}" for line in list(child.last_lines)[-12:])
    last_lines = f"\n  its last lines:{lines}" if lines else ""
    _log.error("llama-server died (%s). %s %s%s", status, reason, advice, last_lines)
    return f"{status}: {reason}"
