"""Runs one scenario against a real gateway and judges the outcome."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.hostile.measures import KEYS, EventStream, Requests, worst_excess_ms
from tests.hostile.scenarios import MB, Scenario, Target
from tests.soak.client import Client
from tests.soak.resources import PATIENCE, Connect, Held, Wrong, eventually, in_use
from tests.support.certificates import issue, trusting
from tests.support.gateways import GatewayProcess, Processes

OURS: Final = (sys.executable, "-m", "llama_gguf")
BODY_SIZE: Final = 10 << 20
"""MAX_REQUEST_BODY_SIZE."""
BODY_MEMORY: Final = 4 * BODY_SIZE
"""MAX_BODY_MEMORY, unless the scenario sets it."""
SAMPLE_SECONDS: Final = 0.05
WARM_UP_SECONDS: Final = 1.0
"""Before the attack, so that memory that every gateway needs is not counted."""
MAX_EXCESS_MB: Final = 300.0
"""Above a bound that is broken already, the attack is stopped, because the machine is shared."""


@dataclass
class Outcome:
    """What was measured, and which bounds it broke."""

    name: str
    resident_mb: float = 0.0
    """The highest, above idle."""
    gap_ms: float = 0.0
    """The longest between events of another key's stream, minus that of the control stream."""
    noise_ms: float = 0.0
    """The longest of the control stream."""
    served: int = 0
    slowest_ms: float = 0.0
    """Of the requests of another key."""
    broken: list[str] = field(default_factory=list)

    def limit(self, what: str, value: float, bound: float) -> None:
        if value > bound:
            self.broken.append(f"{what}: {value:.0f}, more than {bound:.0f}")


class Run:
    """One scenario from start to end.

    Args:
        name: of the scenario.
        scenario: from the table.
        seconds: of the attack.
        folder: for keys, logs and certificates.
        program: that is started as gateway.
        judges_time: False: durations are measured, not judged.
    """

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        *,
        seconds: float,
        folder: Path,
        program: tuple[str, ...] = OURS,
        judges_time: bool = True,
    ) -> None:
        self._scenario = scenario
        self._seconds = seconds
        self._folder = folder
        self._program = program
        self._judges_time = judges_time
        self._settings: dict[str, Any] = {
            "MAX_REQUEST_BODY_SIZE": BODY_SIZE,
            "MAX_BODY_MEMORY": BODY_MEMORY,
            **scenario.settings,
        }
        self._outcome = Outcome(name)
        self._attacked: GatewayProcess

    async def run(self) -> Outcome:
        scenario = self._scenario
        terminal = self._folder / "terminal"
        os.mkfifo(terminal)
        if scenario.tls:
            self._settings |= issue().write(self._folder)
        trust = trusting() if scenario.tls else None
        before = scenario.before.format(terminal=terminal)
        shell = ("/bin/sh", "-c", f'{before} exec "$@"', "sh")
        with ExitStack() as stack:
            pipe = os.open(terminal, os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, pipe)
            processes = stack.enter_context(closing(Processes(self._folder)))
            engine = await asyncio.to_thread(
                processes.fake_llama, "--at-once", str(scenario.at_once)
            )
            gateway = partial(
                processes.gateway, engine.address, keys=KEYS, trust=trust, **self._settings
            )
            self._attacked = await asyncio.to_thread(gateway, program=(*shell, *self._program))
            quiet = await asyncio.to_thread(gateway, program=self._program)
            await self._measure(_connector(quiet), Target(self._attacked.port, trust, pipe))
        return self._outcome

    async def _measure(self, connect_quietly: Connect, target: Target) -> None:
        connect = _connector(self._attacked)
        await in_use(connect)
        start = await Held.least(self._attacked)
        stream, control = EventStream(connect), EventStream(connect_quietly)
        requests = Requests(connect)
        loop = asyncio.get_running_loop()
        asking = loop.create_task(requests.run())
        streaming = [loop.create_task(s.run()) for s in (stream, control)]
        try:
            async with asyncio.timeout(PATIENCE):
                for measure in (stream, control, requests):
                    await measure.has_begun.wait()
            await asyncio.sleep(WARM_UP_SECONDS)
            began = time.monotonic()
            await self._attack(target)
            await requests.finish(asking)
            self._judge(stream, control, requests, began)
        finally:
            for task in (asking, *streaming):
                task.cancel()
            await asyncio.gather(asking, *streaming, return_exceptions=True)
            target.leave()
        self._outcome.broken += target.faults
        try:
            await self._check_that_all_is_released(connect, start)
        except (Wrong, TimeoutError, OSError) as error:
            self._outcome.broken.append(str(error) or repr(error))

    async def _attack(self, target: Target) -> None:
        """Run the attack, and sample the gateway's memory meanwhile."""
        outcome, scenario = self._outcome, self._scenario
        idle = self._attacked.resident_bytes

        async def attack() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await scenario.attack(target)

        attacking = asyncio.get_running_loop().create_task(attack())
        while not attacking.done():
            await asyncio.sleep(SAMPLE_SECONDS)
            grown = (self._attacked.resident_bytes - idle) / MB
            outcome.resident_mb = max(outcome.resident_mb, grown)
            if grown > scenario.resident_mb + MAX_EXCESS_MB:
                attacking.cancel()
        with suppress(asyncio.CancelledError):
            await attacking

    # The judgement --------------------------------------------------------------------------------

    def _judge(
        self, stream: EventStream, control: EventStream, requests: Requests, began: float
    ) -> None:
        outcome, scenario = self._outcome, self._scenario
        now = time.monotonic()
        quiet_gaps = control.gaps(began, now)
        outcome.gap_ms = worst_excess_ms(stream.gaps(began, now), quiet_gaps)
        outcome.noise_ms = 1000 * max(end - start for start, end in quiet_gaps)
        outcome.served = requests.served
        outcome.slowest_ms = 1000 * requests.slowest_seconds
        outcome.limit("MB of resident memory above idle", outcome.resident_mb, scenario.resident_mb)
        if self._judges_time:
            outcome.limit("ms between events", outcome.gap_ms, scenario.gap_ms)
        if self._judges_time and scenario.slowest_ms:
            outcome.limit("ms for a request", outcome.slowest_ms, scenario.slowest_ms)
        for what, number in requests.failures.items():
            outcome.broken.append(f"requests of another key that failed: {number} with {what}")

    async def _check_that_all_is_released(self, connect: Connect, start: Held) -> None:
        async def is_at_rest() -> bool | str:
            held = await in_use(connect)
            return not any(held.values()) or str(held)

        await eventually(is_at_rest, "slots, queue and body memory are released")
        await eventually(
            lambda: Held.by(self._attacked).has_no_more_than(start),
            f"there are no more than {start}, as at the start",
        )


def _connector(gateway: GatewayProcess) -> Connect:
    return partial(Client.connect, gateway.port, trust=gateway.trust)
