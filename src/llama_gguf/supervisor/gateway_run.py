"""Manages a gateway: starts it, exchanges messages with it, restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final

from llama_gguf.engines import exit_reasons
from llama_gguf.engines.activity import GREETING, Activity
from llama_gguf.engines.status import EngineState, EngineStatus
from llama_gguf.events import EventLog
from llama_gguf.supervisor.child import Child, spawn
from llama_gguf.supervisor.restart_policy import LEAVING, Event, GiveUp, RestartPolicy

_log: Final = EventLog(__name__)

EXTRA_SECONDS: Final = 5.0
"""Beyond DRAIN_TIMEOUT, for the gateway to leave by itself."""
FORGIVING_SECONDS: Final = 10.0
MAX_WAITING_BYTES: Final = 65536
"""For a gateway that does not read: what it has not heard of now, it will be told later."""


class GatewayKeeper:
    """One gateway at a time, all of them on the same listening socket.

    Args:
        environ: of the gateway: ours, with the settings made explicit.
        listener: the listening socket that each gateway inherits.
        hear: called with all that the gateway tells; None when there is none any more.
        rng: for the delays between restarts.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        listener: socket.socket,
        *,
        hear: Callable[[Activity | None], None],
        rng: Callable[[], float],
    ) -> None:
        self._environ = environ
        self._listener = listener
        self._hear = hear
        self._policy = RestartPolicy(
            first_delay=0.1,
            max_delay=10.0,
            max_first_deaths=0,
            forgiving_after=FORGIVING_SECONDS,
            rng=rng,
        )
        self._channel: asyncio.StreamWriter | None = None
        self._status = b""
        self._waiting_signals: set[signal.Signals] = set()
        self.child: Child | None = None

    @property
    def state(self) -> EngineState:
        return self._policy.state

    def _on(self, event: Event) -> None:
        self._policy.on(event, asyncio.get_running_loop().time())

    async def keep(self) -> int:
        """Keep one until it is given up, or we are leaving. Returns its exit status."""
        loop = asyncio.get_running_loop()
        while self.state not in LEAVING:
            status = await self._live()
            if self.state is EngineState.STOPPING:
                self._on(Event.GONE)
                break
            decision = self._policy.died(status, loop.time())
            if isinstance(decision, GiveUp):
                _log.error(
                    "gateway_given_up",
                    "Giving up on the gateway; serve exits with status {exit_status}",
                    exit_status=decision.exit_status,
                )
                return decision.exit_status
            await asyncio.sleep(decision.when - loop.time())
        return 0

    async def _live(self) -> int:
        """One life of the gateway, from spawn to reap. Returns what we would leave with for it."""
        self._on(Event.SPAWNED)
        ours, theirs = socket.socketpair()
        fds = (self._listener.fileno(), theirs.fileno())
        argv = [sys.executable, "-m", "llama_gguf", "gateway"]
        argv += ["--listen-fd", str(fds[0]), "--channel-fd", str(fds[1])]
        with ours:
            try:
                with theirs:
                    child = await spawn("gateway", argv, environ=self._environ, pass_fds=fds)
            except OSError as error:
                _log.error(
                    "gateway_not_started",
                    "The gateway cannot be started: {reason}",
                    reason=error.strerror,
                )
                return 1
            self.child = child
            async with asyncio.TaskGroup() as group:
                talking = group.create_task(self._talk(ours.dup()))
                await child.wait()
                talking.cancel()
        self.child = None
        self._hear(None)
        if self.state is not EngineState.STOPPING:
            status = exit_reasons.status_text(child.returncode)
            _log.error("gateway_died", "The gateway died ({status})", status=status)
        return exit_reasons.exit_status(child.returncode)

    # The channel --------------------------------------------------------------------------------

    async def _talk(self, channel: socket.socket) -> None:
        """Tell how the engine is, and hear what the gateway tells, until one of us has gone."""
        channel.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=channel)
        self._channel = writer
        self._send_status()
        try:
            with contextlib.suppress(ConnectionError):  # it died with our news unread
                # A last line without its end was cut by its death.
                while (line := await reader.readline()).endswith(b"\n"):
                    self._take(line)
        finally:
            self._channel = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()  # else asyncio complains of what nobody has asked for

    def _take(self, line: bytes) -> None:
        if line == GREETING:
            self._on_greeting()
        else:
            self._hear(Activity.from_line(line))

    def _on_greeting(self) -> None:
        """It accepts connections now, and heeds signals."""
        if self.state is EngineState.LOADING:
            self._on(Event.SERVES)
        for number in self._waiting_signals:
            self.signal(number)
        self._waiting_signals.clear()

    def tell(self, status: EngineStatus) -> None:
        """Tell the gateway, this one and those to come, how the engine is."""
        self._status = status.to_line()
        self._send_status()

    def _send_status(self) -> None:
        writer = self._channel
        if writer is not None and writer.transport.get_write_buffer_size() < MAX_WAITING_BYTES:
            writer.write(self._status)

    # From outside -------------------------------------------------------------------------------

    def pass_on(self, number: signal.Signals) -> None:
        """Send the gateway *number*, as soon as it heeds it: before, it would die of it."""
        if self.state is EngineState.READY:
            self.signal(number)
        elif self.state not in LEAVING:
            self._waiting_signals.add(number)

    def signal(self, number: signal.Signals) -> None:
        if self.child is not None:
            self.child.signal(number)

    def leave(self) -> None:
        """From now on none is started again, and the one that runs is to be stopped."""
        if self.state not in LEAVING:
            self._on(Event.STOP)
