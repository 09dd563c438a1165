"""Where the engines come from that the gateway may use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from llama_gguf.engines.address import EngineAddress
from llama_gguf.events import EventLog
from llama_gguf.net.threads import run_detached

if TYPE_CHECKING:
    from llama_gguf.engines.roster import Demand, Roster

_log: Final = EventLog(__name__)

LOOKUP_SECONDS: Final = 5.0
"""Between two look-ups of a name."""
_UNIX: Final = "unix:"
_DNS: Final = "dns+"
_RAY: Final = "ray://"

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name; the port is that of the service. Raises OSError."""


class EngineSource(Protocol):
    """Knows the addresses of engines, which may come and go."""

    on_change: Callable[[], None]
    """Set by its user; called after each change of ``addresses``."""

    @property
    def addresses(self) -> tuple[EngineAddress, ...]: ...

    @property
    def absence(self) -> Roster | None:
        """Why there are no ``addresses``, if the source knows whether there will be some."""
        ...

    def wake(self) -> None:
        """Have an engine started, for a request that does not wait for it."""
        ...

    async def follow(self) -> None:
        """Keep ``addresses`` up to date until cancelled, or return if they never change."""
        ...


async def look_up(name: str, port: int) -> list[str]:
    """The addresses of *name*, IPv4 and IPv6, on a thread: a resolver may hang."""
    found = await run_detached(lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
    return [str(address[0]) for _, _, _, _, address in found]


class PeerSource:
    """The engines of PEERS: addresses, and names with any number of addresses.

    A name that cannot be resolved keeps its last addresses, since a resolver that fails is no
    reason to leave engines that serve.

    Args:
        peers: as ``parsers.peers`` has them.
        api_key: that all of them expect.
        look_up: resolves a name.
    """

    def __init__(
        self, peers: Iterable[str], api_key: str = "", *, look_up: LookUp = look_up
    ) -> None:
        self._api_key = api_key
        self._look_up = look_up
        self.on_change: Callable[[], None] = _ignore
        self._found: dict[str, tuple[EngineAddress, ...]] = {
            peer: () if peer.startswith(_DNS) else (self._address(peer),) for peer in peers
        }
        self._failing: set[str] = set()

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        """In the order of PEERS, and each once."""
        every = (address for found in self._found.values() for address in found)
        return tuple({address.key: address for address in every}.values())

    @property
    def absence(self) -> None:
        """Unknown: a name may get addresses at any time."""
        return None

    def wake(self) -> None:
        """Nothing: others start its engines."""

    async def follow(self) -> None:
        """Resolve the names periodically, until cancelled."""
        names = [peer for peer in self._found if peer.startswith(_DNS)]
        async with asyncio.TaskGroup() as group:
            for peer in names:
                group.create_task(self._follow(peer), name=f"resolve {peer}")

    async def _follow(self, peer: str) -> None:
        while True:
            await self.resolve(peer)
            await asyncio.sleep(LOOKUP_SECONDS)

    async def resolve(self, peer: str) -> None:
        """Look up the name in *peer* once."""
        from urllib.parse import urlsplit  # noqa: PLC0415  # few gateways have peers

        parts = urlsplit(peer.removeprefix(_DNS))
        name, port = parts.hostname or "", parts.port or 0
        try:
            hosts = await self._look_up(name, port)
        except OSError as error:
            if peer not in self._failing:
                self._failing.add(peer)
                _log.warning(
                    "peer_not_resolved",
                    "{peer} cannot be resolved: {reason}; its last {count} addresses stay in use",
                    peer=peer,
                    reason=error.strerror or str(error),
                    count=len(self._found[peer]),
                )
            return
        self._failing.discard(peer)
        # Sorted, since a resolver rotates them.
        found = tuple(self._address(peer, host) for host in sorted(set(hosts)))
        if found != self._found[peer]:
            self._found[peer] = found
            _log.info(
                "peer_resolved",
                "{peer} has {count} addresses: {addresses}",
                peer=peer,
                count=len(found),
                addresses=", ".join(address.key for address in found),
            )
            self.on_change()

    def _address(self, peer: str, host: str = "") -> EngineAddress:
        """The engine at *peer*, or at one of its addresses."""
        if peer.startswith(_UNIX):
            return EngineAddress("", 0, peer.removeprefix(_UNIX), self._api_key)
        from urllib.parse import urlsplit  # noqa: PLC0415

        parts = urlsplit(peer.removeprefix(_DNS))
        name = parts.hostname or ""
        return EngineAddress(
            host or name,
            parts.port or 0,
            api_key=self._api_key,
            has_tls=parts.scheme == "https",
            name=name if host else "",
        )


class SeveralSources:
    """The engines of several sources, each address once."""

    def __init__(self, sources: Sequence[EngineSource]) -> None:
        self._sources = sources

    @property
    def on_change(self) -> Callable[[], None]:
        return self._sources[0].on_change

    @on_change.setter
    def on_change(self, called: Callable[[], None]) -> None:
        for source in self._sources:
            source.on_change = called

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        every = (address for source in self._sources for address in source.addresses)
        return tuple({address.key: address for address in every}.values())

    @property
    def absence(self) -> Roster | None:
        """As the first source that knows it, if there are no addresses."""
        if self.addresses:
            return None
        return next((found for each in self._sources if (found := each.absence)), None)

    def wake(self) -> None:
        for source in self._sources:
            source.wake()

    async def follow(self) -> None:
        async with asyncio.TaskGroup() as group:
            for source in self._sources:
                group.create_task(source.follow(), name="follow a source of engines")


def source_of(
    peers: Iterable[str], api_key: str = "", *, load: Callable[[], Demand] | None = None
) -> EngineSource:
    """Where the engines of PEERS come from.

    Args:
        peers: as ``parsers.peers`` has them.
        api_key: that all of them expect.
        load: what the gateway needs, without the roster's revision; None = nothing.
    """
    peers = tuple(peers)
    sources: list[EngineSource] = []
    if clusters := [peer for peer in peers if peer.startswith(_RAY)]:
        # Only where it is needed: most gateways have no cluster.
        from llama_gguf.engines.cluster_source import ClusterSource  # noqa: PLC0415
        from llama_gguf.engines.roster import Demand  # noqa: PLC0415

        sources += [ClusterSource(peer, api_key, load=load or Demand) for peer in clusters]
    others = [peer for peer in peers if peer not in clusters]
    if others or not sources:
        sources.append(PeerSource(others, api_key))
    return sources[0] if len(sources) == 1 else SeveralSources(sources)


def _ignore() -> None:
    """No user of the addresses yet."""
