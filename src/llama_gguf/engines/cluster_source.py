"""Follows the engines of a Ray cluster, for ``ray://`` in PEERS.

The controller of the cluster (``cluster/``) sends their addresses, and gets what the gateway needs.
The connection is not one of Ray's, so that a gateway needs neither Ray nor a machine of the
cluster: docs/adr/0035-ray-places-engines.md. While the controller cannot be reached, the last
addresses stay in use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from llama_gguf import __version__
from llama_gguf.engines import roster
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.roster import Demand, Hello, Refused, Roster
from llama_gguf.engines.status import ChildState
from llama_gguf.events import EventLog
from llama_gguf.net.streams import FAILURES
from llama_gguf.values import replace

_log: Final = EventLog(__name__)

CONNECT_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 0.25
"""Between two looks at the demand."""
HEAD_FILE: Final = "/tmp/ray/ray_current_cluster"  # noqa: S108  # where Ray writes it
"""The address of the head of this machine's cluster, as `ray start` leaves it."""
_RAYS_PORTS: Final = {6379: "Ray itself", 10001: "Ray's clients", 8265: "Ray's dashboard"}

Connect = Callable[[str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(host, port, limit=roster.MAX_LINE_BYTES)


class ClusterSource:
    """The engines of one entry ``ray://`` of PEERS: an ``EngineSource``.

    Args:
        peer: as ``parsers.peers`` has it.
        api_key: that controller and engines expect.
        load: what the gateway needs, without the roster's revision.
        connect: to the controller.
    """

    def __init__(
        self,
        peer: str,
        api_key: str,
        *,
        load: Callable[[], Demand] = Demand,
        connect: Connect = connect,
    ) -> None:
        self._peer = peer
        self._api_key = api_key
        self._load = load
        self._connect = connect
        self.on_change: Callable[[], None] = _ignore
        self._roster = Roster(detail="The controller of the cluster has not responded yet.")
        self._is_lost = False
        self._is_requested = False

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        return tuple(
            EngineAddress.from_key(key, api_key=self._api_key) for key in self._roster.addresses
        )

    @property
    def absence(self) -> Roster | None:
        """Why there is no engine; None if there is one."""
        return None if self._roster.addresses else self._roster

    def wake(self) -> None:
        """Have an engine started, for a request that does not wait for it."""
        self._is_requested = True

    async def follow(self) -> None:
        """Keep up with the controller, until cancelled."""
        while True:
            try:
                await self._follow_once()
            except* (*FAILURES, Refused) as failures:
                self._on_lost(failures.exceptions[0])
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow_once(self) -> None:
        """Connect, and follow until the connection is lost."""
        host, port = self._controller()
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await self._connect(host, port)
        with contextlib.closing(writer):
            writer.write(roster.to_line(Hello(__version__, self._api_key)))
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(self._report(writer))
                try:
                    await self._read(reader)
                finally:
                    reporting.cancel()

    def _controller(self) -> tuple[str, int]:
        """Host and port of the controller.

        Raises:
            OSError: this machine belongs to no cluster.
        """
        parts = urlsplit(self._peer)
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
        try:
            with open(HEAD_FILE, encoding="ascii") as file:
                head = file.read().strip()
        except (OSError, ValueError):
            raise OSError(
                "this machine belongs to no Ray cluster; set PEERS=ray://HOST:PORT, as "
                "`llama-gguf ray up` shows it"
            ) from None
        return head.rpartition(":")[0].strip("[]") or "127.0.0.1", roster.DEFAULT_PORT

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(roster.SILENT_SECONDS):
                line = await reader.readuntil(b"\n")
            found = roster.read_roster(line)
            if self._is_lost:
                self._is_lost = False
                _log.info("cluster_found", "{peer}: its controller responds again", peer=self._peer)
            if found.version not in {self._roster.version, __version__}:
                _log.warning(
                    "cluster_version",
                    "{peer} has llama-gguf {there}, and this gateway is {here}: "
                    "install the same version",
                    peer=self._peer,
                    there=found.version,
                    here=__version__,
                )
            if found.addresses != self._roster.addresses:
                _log.info(
                    "cluster_engines",
                    "{peer}: engines: {addresses}" if found.addresses else "{peer}: no engine now",
                    peer=self._peer,
                    addresses=", ".join(found.addresses),
                )
            if found != self._roster:
                self._roster = found
                self.on_change()

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        """Send the demand when it has changed, and repeat it now and then."""
        repeats = int(roster.REPEAT_SECONDS / REPORT_SECONDS)
        sent, age = Demand(), repeats
        while True:
            load = self._load()
            queued = load.queued or int(self._is_requested)
            self._is_requested = False
            demand = replace(load, revision=self._roster.revision, queued=queued)
            if demand != sent or age >= repeats:
                writer.write(roster.to_line(demand))
                await writer.drain()
                sent, age = demand, 0
            age += 1
            await asyncio.sleep(REPORT_SECONDS)

    def _on_lost(self, error: Exception) -> None:
        if not self._is_lost:
            self._is_lost = True
            _log.warning(
                "cluster_lost",
                "{peer}: no connection to its controller: {reason}; "
                "its last {count} addresses stay in use",
                peer=self._peer,
                reason=self._reason(error),
                count=len(self._roster.addresses),
            )
        if not self._roster.addresses:
            self._roster = replace(
                self._roster,
                state=ChildState.UNREACHABLE,
                detail=f"No connection to the controller of {self._peer}: {self._reason(error)}",
                progress=None,
            )
            self.on_change()

    def _reason(self, error: Exception) -> str:
        port = urlsplit(self._peer).port
        if port in _RAYS_PORTS and not isinstance(error, Refused):
            return (
                f"{port} is a port of {_RAYS_PORTS[port]}; `llama-gguf ray up` shows the "
                f"controller's, which is {roster.DEFAULT_PORT} by default"
            )
        if isinstance(error, TimeoutError):
            return "it does not respond"
        if isinstance(error, asyncio.IncompleteReadError):
            return "it has closed the connection"
        if isinstance(error, ConnectionRefusedError):
            return "the port is closed; `llama-gguf ray up` starts it"
        if isinstance(error, ValueError | asyncio.LimitOverrunError):
            return "what responds there is no controller of llama-gguf"
        return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _ignore() -> None:
    """No user of the addresses yet."""
