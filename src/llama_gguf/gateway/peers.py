"""Follows the engines that no supervisor reports on: where they are, and what their probes find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.engines.probe import Finding, Probe, watch
from llama_gguf.engines.status import ChildState
from llama_gguf.values import replace
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    from llama_gguf.engines.address import EngineAddress
    from llama_gguf.engines.source import EngineSource
    from llama_gguf.gateway.fleet import Fleet
    from llama_gguf.gateway.replica import Replica

PROBE_READY_SECONDS: Final = 2.0
PROBE_ELSE_SECONDS: Final = 0.25


class Peers:
    """Of one gateway.

    Args:
        fleet: to which they are added, and from which they are removed.
        source: knows their addresses.
        probe_of: makes what probes one.
        start: runs a coroutine for as long as the gateway.
    """

    def __init__(
        self,
        fleet: Fleet,
        source: EngineSource,
        *,
        probe_of: Callable[[EngineAddress], Probe],
        start: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._fleet = fleet
        self._source = source
        self._probe_of = probe_of
        self._start = start
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def follow(self) -> None:
        """Add and remove them as they come and go, until cancelled."""
        self._source.on_change = self._on_change
        self._on_change()
        await self._source.follow()

    def _on_change(self) -> None:
        if (absence := self._source.absence) is not None:
            self._fleet.set_absence(absence)
        addresses = {address.key: address for address in self._source.addresses}
        for key in self._watches.keys() - addresses.keys():
            self._watches.pop(key).cancel()
            self._fleet.remove(key)
        for key, address in addresses.items():
            if key not in self._watches:
                replica = self._fleet.add(address, key)
                if not replica.tracker.is_supervised:  # as PEERS may name the own engine
                    self._watches[key] = self.watch(replica)

    def watch(self, replica: Replica) -> asyncio.Task[None]:
        """Probe *replica* from now on."""
        key = replica.address.key
        on_finding = partial(self._on_finding, replica)
        replica.liveness.report = on_finding
        watching = watch(
            self._probe_of(replica.address),
            on_finding,
            ready_every=PROBE_READY_SECONDS,
            else_every=PROBE_ELSE_SECONDS,
            has_responded=partial(self._has_responded, replica),
        )
        return self._start(watching, f"probe {key}")

    def _has_responded(self, replica: Replica) -> bool:
        return self._fleet.now() - replica.tracker.responded_at < PROBE_READY_SECONDS

    def _on_finding(self, replica: Replica, finding: Finding) -> None:
        known = replica.tracker.status
        status = known.moved(finding.state, wall_now(), detail=finding.detail)
        if finding.serves:
            replica.is_gateway = finding.is_gateway
            status = replace(
                status,
                model=finding.model,
                slots=finding.slots,
                request_tokens=finding.request_tokens,
                model_list=finding.model_list,
                wakes_itself=finding.state is ChildState.ASLEEP,
            )
        if status != known:
            replica.tracker.update(status)
