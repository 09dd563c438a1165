"""Starts engine, gateway and clients, and checks that all resources are released at the end."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from tests.soak.client import KEYS, Client
from tests.soak.engine import SLOTS, SMALL_BUFFER, Engine
from tests.soak.resources import PATIENCE, Held, Wrong, eventually, in_use, metrics
from tests.soak.visits import (
    MAX_BODY,
    MENU,
    REQUESTS_OF,
    STREAM_MENU,
    Visit,
    Visitor,
    reads_slowly,
)
from tests.support.gateways import GatewayProcess, Processes

CLIENTS: Final = 64
VISITS_OF_A_CONNECTION: Final = 20
MAX_FAULTS: Final = 20
"""The soak ends after this number: more of them give no new information."""
MAX_GROWTH_BYTES: Final = 16 << 20
"""Of resident memory, between the first third and the end. A key's window alone has one float per
request of the last minute; a leak of 200 bytes per request would be twice as much."""
MEMORY_IN_BODIES: Final = 2 * CLIENTS * MAX_BODY
ENOUGH_FOR_ALL: Final = 1000
"""Requests, so that each kind of visit occurs at least once."""
PHASES: Final = frozenset({"request", "queued", "before_first_byte", "streaming"})
# What the gateway may log.
EXPECTED_LINE: Final = re.compile(
    r".* INFO .*(The gateway listens on|API keys loaded|Engine state: ready|Draining: ).*"
)

SETTINGS: Final[dict[str, Any]] = {
    "MAX_CONCURRENT_REQUESTS": SLOTS,
    "MAX_REQUESTS_PER_MINUTE": 10**9,
    "AUTH_FAILURES_PER_MINUTE": 0,
    "MAX_REQUEST_BODY_SIZE": MAX_BODY,
    "MAX_BODY_MEMORY": MEMORY_IN_BODIES,
}


@dataclass(frozen=True)
class Size:
    requests: int
    streams: int
    seed: int


@dataclass
class Outcome:
    tally: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    disconnects: Mapping[str, int] = field(default_factory=dict)
    """Clients that disconnected, as the gateway counted them, by phase."""
    held: dict[str, Held] = field(default_factory=dict)
    """By moment: start, third, end."""
    seconds: float = 0.0


class Soak:
    """One soak.

    Args:
        size: how much, and the seed of all choices.
        folder: for the gateway's keys and logs.
        report: called with the number of requests that are done.
    """

    def __init__(self, size: Size, folder: Path, report: Callable[[int], None]) -> None:
        self._size = size
        self._folder = folder
        self._report = report
        self._outcome = Outcome()
        self._numbers = count(1)
        self._remaining = {False: size.requests, True: size.streams}
        self._visits = count()
        self._rng = random.Random(size.seed)
        self._engine: Engine
        self._gateway: GatewayProcess

    async def run(self) -> Outcome:
        outcome = self._outcome
        began = time.monotonic()
        with closing(Processes(self._folder)) as processes:
            async with Engine() as self._engine:
                self._gateway = await asyncio.to_thread(
                    processes.gateway, ("127.0.0.1", self._engine.port), keys=KEYS, **SETTINGS
                )
                await self._visit_and_check()
        outcome.faults += self._engine.faults
        outcome.tally["connections to the engine"] = self._engine.accepted
        outcome.tally["requests at the engine"] = self._engine.requests
        outcome.seconds = time.monotonic() - began
        return outcome

    async def _visit_and_check(self) -> None:
        try:
            await eventually(self._is_at_rest, "the gateway is at rest at the start")
            start = self._outcome.held["start"] = await Held.least(self._gateway)
            await self._run_clients()
            await self._check_that_all_is_released(start)
        except (Wrong, TimeoutError) as error:  # nothing after it could be judged
            self._fault(str(error))
        await self._check_end()

    async def _run_clients(self) -> None:
        """Run all clients.

        Raises:
            Wrong: the gateway no longer accepts connections.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(self._come_and_go())
        except* Wrong as errors:
            raise errors.exceptions[0] from None

    async def _check_that_all_is_released(self, start: Held) -> None:
        await eventually(self._is_at_rest, "everything is released")
        await self._check_phases()
        await eventually(
            lambda: self._has_no_more_than(start), "descriptors and threads are released"
        )
        self._check_growth()

    # Clients --------------------------------------------------------------------------------------

    async def _come_and_go(self) -> None:
        client: Client | None = None
        while (visit := self._next_visit()) is not None:
            number = next(self._visits)
            rng = random.Random(f"{self._size.seed} {number}")
            is_slow = visit is reads_slowly
            if client is not None and is_slow:
                await client.disconnect()
                client = None
            if client is None:
                client = await self._connect(SMALL_BUFFER if is_slow else 1 << 16)
            try:
                is_usable = await self._pay(visit, client, rng)
            except (Wrong, TimeoutError, OSError) as error:
                self._fault(f"visit {number}, {visit.__name__}: {error!r}")
                is_usable = False
                await client.reset()
            if not is_usable or is_slow or not rng.randrange(VISITS_OF_A_CONNECTION):
                await client.disconnect()
                client = None
        if client is not None:
            await client.disconnect()

    async def _connect(self, buffer_bytes: int = 1 << 16) -> Client:
        """Connect to the gateway.

        Raises:
            Wrong: it no longer accepts connections.
        """
        try:
            return await Client.connect(self._gateway.port, buffer_bytes=buffer_bytes)
        except OSError as error:
            raise Wrong(f"the gateway accepts no connections: {error}") from None

    async def _pay(self, visit: Visit, client: Client, rng: random.Random) -> bool:
        visitor = Visitor(
            client, self._engine, rng, numbers=self._numbers, tally=self._outcome.tally
        )
        async with asyncio.timeout(PATIENCE):
            return await visit(visitor)

    def _next_visit(self) -> Visit | None:
        """What the next client does; None at the end."""
        remaining = self._remaining
        total = remaining[False] + remaining[True]
        if not total or len(self._outcome.faults) >= MAX_FAULTS:
            return None
        is_stream = self._rng.randrange(total) < remaining[True]
        menu = STREAM_MENU if is_stream else MENU
        (visit,) = self._rng.choices(list(menu), list(menu.values()))
        remaining[is_stream] -= min(REQUESTS_OF.get(visit, 1), remaining[is_stream])
        self._outcome.tally[visit.__name__] += 1
        self._on_progress(self._size.requests + self._size.streams - sum(remaining.values()))
        return visit

    def _on_progress(self, done: int) -> None:
        held = self._outcome.held
        if "third" not in held and 3 * done >= self._size.requests + self._size.streams:
            held["third"] = Held.by(self._gateway)
        self._report(done)

    def _fault(self, what: str) -> None:
        self._outcome.faults.append(what)

    # Checks at the end ----------------------------------------------------------------------------

    async def _is_at_rest(self) -> bool | str:
        """True, or what is still in use."""
        held = await in_use(self._connect)
        held["connections to the engine"] = len(self._engine.connections)
        return not any(held.values()) or str(held)

    def _has_no_more_than(self, start: Held) -> bool | str:
        now = self._outcome.held["end"] = Held.by(self._gateway)
        return now.has_no_more_than(start)

    def _check_growth(self) -> None:
        held = self._outcome.held
        if "third" not in held:
            return  # it ended early, with faults
        growth = held["end"].resident_bytes - held["third"].resident_bytes
        if growth > MAX_GROWTH_BYTES:
            self._fault(f"resident memory has grown by {growth / 1e6:.1f} MB since the first third")

    async def _check_phases(self) -> None:
        """Check that clients have disconnected in each phase, so that the soak has covered it."""
        rows = (await metrics(self._connect))["llama_gguf_client_disconnects"]
        self._outcome.disconnects = {row["phase"]: row["value"] for row in rows if row["value"]}
        missing = PHASES - self._outcome.disconnects.keys()
        if missing and self._size.requests >= ENOUGH_FOR_ALL:
            self._fault(f"no client has disconnected in phase {', '.join(sorted(missing))}")

    async def _check_end(self) -> None:
        """Check that the gateway exits on SIGTERM, and has logged nothing unexpected."""
        self._gateway.signal(signal.SIGTERM)
        status = await asyncio.to_thread(self._gateway.wait)
        if status:
            self._fault(f"the gateway exited with status {status}")
        for line in self._gateway.log.splitlines():
            if not EXPECTED_LINE.fullmatch(line):
                self._fault(f"the gateway logged: {line}")
