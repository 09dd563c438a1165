"""The gateway process: its command line, its channel and the signals that are passed on to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from llama_gguf.engines.activity import FACTS, FACTS_REQUEST, GREETING, OWNERS, Activity
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.events import EventLog
from llama_gguf.supervisor import child as children
from llama_gguf.supervisor.child import Child, own_command
from llama_gguf.supervisor.launch import Spawn
from llama_gguf.supervisor.managed_process import Clock, Life, LoopClock, ManagedProcess
from llama_gguf.supervisor.restart_policy import LEAVING, Event, RestartPolicy

_log: Final = EventLog(__name__)

EXTRA_SECONDS: Final = 5.0
"""Beyond DRAIN_TIMEOUT, for the gateway to exit by itself."""
FORGIVING_SECONDS: Final = 10.0
LAST_LINES_SECONDS: Final = 1.0
"""To read what it has sent before its death; the channel is closed by then."""
FACTS_SECONDS: Final = 2.0
"""For a gateway to report about itself."""
MAX_BUFFERED_BYTES: Final = 65536
"""In the channel to a gateway that does not read: the rest is sent when it does."""


class GatewayManager(ManagedProcess):
    """One gateway at a time, all of them on the same listening socket.

    Args:
        environ: of the gateway: ours, with the settings made explicit.
        listener: the listening socket that each gateway inherits.
        on_activity: called with each report of the gateway; with None after its death.
        on_owners: called with the owners of requests, by the address of their engine; with None if
            it has died, and may not have reported all.
        rng: for the delays between restarts.
        spawn: starts a process.
        clock: for restarts.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        listener: socket.socket,
        *,
        on_activity: Callable[[Activity | None], None],
        rng: Callable[[], float],
        on_owners: Callable[[Mapping[str, Sequence[str]] | None], None] = lambda owners: None,
        spawn: Spawn = children.spawn,
        clock: Clock | None = None,
    ) -> None:
        policy = RestartPolicy(
            first_delay=0.1,
            max_delay=10.0,
            max_first_deaths=0,
            forgiving_after=FORGIVING_SECONDS,
            rng=rng,
        )
        super().__init__(policy, clock or LoopClock())
        self._environ = environ
        self._listener = listener
        self._on_activity = on_activity
        self._on_owners = on_owners
        self._spawn = spawn
        self._channel: asyncio.StreamWriter | None = None
        self._statuses: dict[str, EngineStatus] = {}
        """By address; also of those that are removed, for a gateway that does not know yet."""
        self._unsent: set[str] = set()
        self._facts: dict[str, object] = {}
        self._has_facts = asyncio.Event()
        self._pending_signals: set[signal.Signals] = set()

    # Its lives ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[Child]:
        ours, theirs = socket.socketpair()
        fds = (self._listener.fileno(), theirs.fileno())
        flags = ("--listen-fd", str(fds[0]), "--channel-fd", str(fds[1]))
        argv = own_command("gateway", *flags)
        with ours:
            with theirs:
                child = await self._spawn("gateway", argv, environ=self._environ, pass_fds=fds)
            async with asyncio.TaskGroup() as group:
                exchanging = group.create_task(self._exchange_messages(ours.dup()))
                yield child
                await asyncio.wait([exchanging], timeout=LAST_LINES_SECONDS)
                exchanging.cancel()
        if child.returncode:
            self._on_owners(None)
        self._on_activity(None)

    def _on_death(self, life: Life) -> None:
        if life.pid is None:
            _log.error(
                "gateway_not_started",
                "The gateway cannot be started: {reason}",
                reason=life.spawn_error,
            )
        else:
            _log.error("gateway_died", "The gateway died ({status})", status=life.status_text)

    def _on_given_up(self, exit_status: int) -> None:
        _log.error(
            "gateway_given_up",
            "Giving up on the gateway; serve exits with status {exit_status}",
            exit_status=exit_status,
        )

    # The channel --------------------------------------------------------------------------------

    async def _exchange_messages(self, channel: socket.socket) -> None:
        """Send the engine's status, and receive the gateway's reports, until either end closes."""
        channel.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=channel)
        self._channel = writer
        for address in [a for a, status in self._statuses.items() if status.is_removed]:
            del self._statuses[address]  # this gateway never knew it
        self._unsent = set(self._statuses)
        self._write_statuses()
        try:
            with contextlib.suppress(ConnectionError):  # it died before it had read everything
                # A last line without its end was cut by its death.
                while (line := await reader.readline()).endswith(b"\n"):
                    self._on_line(line)
        finally:
            self._channel = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()  # else asyncio logs an exception that was not retrieved

    def _on_line(self, line: bytes) -> None:
        if line == GREETING:
            self._on_greeting()
        elif line.startswith(FACTS):
            self._facts = json.loads(line[len(FACTS) :])
            self._has_facts.set()
        elif line.startswith(OWNERS):
            self._on_owners(json.loads(line[len(OWNERS) :]))
        else:
            self._write_statuses()
            self._on_activity(Activity.from_line(line))

    def _on_greeting(self) -> None:
        """It accepts connections now, and has its signal handlers."""
        if self.state is ChildState.LOADING:
            self._move(Event.SERVES)
        for number in self._pending_signals:
            self._signal(number)
        self._pending_signals.clear()

    def send_status(self, status: EngineStatus) -> None:
        """Send a replica's status to this gateway, and to each one after it when it starts."""
        self._statuses[status.address] = status
        self._unsent.add(status.address)
        self._write_statuses()

    async def facts(self, *, within_seconds: float = FACTS_SECONDS) -> dict[str, object] | None:
        """What the gateway reports about itself now; None if it does not respond."""
        if self._channel is None:
            return None
        self._has_facts.clear()
        self._channel.write(FACTS_REQUEST)
        try:
            async with asyncio.timeout(within_seconds):
                await self._has_facts.wait()
        except TimeoutError:
            return None
        return self._facts

    def _write_statuses(self) -> None:
        """Write what has changed. A gateway that does not read gets it when it does."""
        writer = self._channel
        if writer is None:
            return
        for address in sorted(self._unsent, key=list(self._statuses).index):
            if writer.transport.get_write_buffer_size() >= MAX_BUFFERED_BYTES:
                break
            writer.write(self._statuses[address].to_line())
            self._unsent.remove(address)

    # Signals ------------------------------------------------------------------------------------

    def pass_on(self, number: signal.Signals) -> None:
        """Send the gateway *number*, once it has a handler: before, the signal would end it."""
        if self.state is ChildState.READY:
            self._signal(number)
        elif self.state not in LEAVING:
            self._pending_signals.add(number)

    def _signal(self, number: signal.Signals) -> None:
        if self.child is not None:
            self.child.signal(number)
