"""Decides which engines there are: a pure machine, whose effects are those of a ``Placement``.

Each engine has a number. It is placed on a machine, prepared and loaded there, and listed for the
gateways once it is ready. ``step`` is called twice a second; its order:

1. An engine that failed is tried again when that is due, perhaps on another machine.
2. The requests of all gateways decide how many engines there are to be (``scaling.py``).
3. Too few: engines that are leaving stay, then new ones are placed, the lowest number first.
4. Too many: those that do not serve leave first, then those with the highest numbers.
5. An engine that leaves is stopped once no gateway uses it: those that are listed no longer get no
   new requests, and finish those that they have.

An engine whose machine dies is placed again by Ray. Until then it is not listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from llama_gguf.cluster.order import Identity, Order, Report
from llama_gguf.cluster.scaling import Scaling, needed
from llama_gguf.config.schema import DEFAULT_SLOTS
from llama_gguf.engines.roster import Demand, Roster
from llama_gguf.engines.status import ChildState
from llama_gguf.values import replace

FIRST_RETRY_SECONDS: Final = 15.0
MAX_RETRY_SECONDS: Final = 600.0

_S = ChildState


class Placement(Protocol):
    """Runs engines somewhere in the cluster, and reports on them to the controller."""

    def start(self, number: int) -> None: ...

    def stop(self, number: int) -> None: ...


@dataclass(slots=True)
class Engine:
    """One engine that there is to be."""

    number: int
    report: Report | None = None
    """None until it has a machine."""
    is_listed: bool = False
    """It has been ready, and is expected to be again."""
    is_silent: bool = False
    """Its machine does not respond."""
    is_leaving: bool = False
    left_at: int = 0
    """The first revision of the roster without it."""
    leave_by: float = math.inf
    failures: int = 0
    """In a row."""
    failure: str = ""
    """Why it is not running now, or was not before."""
    retry_at: float = math.inf

    @property
    def has_failed(self) -> bool:
        return self.retry_at < math.inf

    @property
    def state(self) -> ChildState:
        if self.has_failed:
            return _S.BACKOFF
        if self.is_leaving:
            return _S.DRAINING
        if self.is_silent:
            return _S.UNREACHABLE
        return _S.STARTING if self.report is None else self.report.state

    @property
    def address(self) -> str:
        return "" if self.report is None else self.report.address


class Controller:
    """Of one cluster.

    Args:
        order: what there is to be.
        placement: starts and stops engines.
        on_roster: called with each change of ``roster``.
        adopted: numbers of engines that an earlier controller has started.
        now: seconds on a clock that never runs backwards, as everywhere here.
    """

    def __init__(
        self,
        order: Order,
        placement: Placement,
        *,
        on_roster: Callable[[], None],
        now: float,
        adopted: Sequence[int] = (),
    ) -> None:
        self.order = order
        self._placement = placement
        self._on_roster = on_roster
        self.is_down = False
        # The first engine is started in any case: it shows whether the model can be served.
        count = len(adopted) or max(order.bounds.least, 1)
        self._scaling = Scaling(
            order.bounds, idle_seconds=order.idle_seconds, current=count, now=now
        )
        self.engines = {number: Engine(number) for number in adopted}
        self._slots = DEFAULT_SLOTS
        self._model = ""
        self._demands: dict[Hashable, Demand] = {}
        self.roster = Roster(1, detail="Starting the first engine.", version=order.version)

    # From outside -------------------------------------------------------------------------------

    def on_gateway(self, gateway: Hashable, demand: Demand = Demand()) -> None:  # noqa: B008
        """A *gateway* has connected, or has reported its *demand*."""
        self._demands[gateway] = demand

    def on_gateway_gone(self, gateway: Hashable) -> None:
        self._demands.pop(gateway, None)

    def on_report(self, number: int, report: Report, now: float) -> None:
        """An engine is in this state."""
        engine = self.engines.get(number)
        if engine is None or engine.has_failed:
            return
        if engine.report is not None and engine.report.address != report.address:
            engine.is_listed = False  # it is another process
        engine.report = report
        engine.is_silent = False
        reason = report.detail if report.state is _S.FAILED else self._disagreement(engine)
        if reason:
            self._fail(engine, reason, now)
        elif report.state is _S.READY:
            engine.is_listed = True
            engine.failures, engine.failure = 0, ""
            self._slots = report.slots or self._slots
            self._model = report.model or self._model
        self._update_roster()

    def on_lost(self, number: int) -> None:
        """The machine of an engine has died, or its process: Ray places it again."""
        if engine := self.engines.get(number):
            engine.report, engine.is_listed, engine.is_silent = None, False, False
            self._update_roster()

    def on_silent(self, number: int) -> None:
        """An engine does not respond now. Gateways find out for themselves if they reach it."""
        if (engine := self.engines.get(number)) and engine.report is not None:
            engine.is_silent = True

    def on_failed(self, number: int, reason: str, now: float) -> None:
        """An engine could not be started, and Ray does not try it again."""
        engine = self.engines.get(number)
        if engine is not None and not engine.has_failed:
            self._fail(engine, reason, now)
            self._update_roster()

    def take_down(self, now: float) -> None:
        """Stop all engines: requests have ``drain_seconds`` to finish."""
        self.is_down = True
        for engine in self.engines.values():
            engine.leave_by = now + self.order.drain_seconds
            self._leave(engine)
        self.step(now)

    # Decisions ----------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Start and stop what is due; the module's docstring numbers the cases."""
        for engine in self.engines.values():
            if engine.retry_at <= now and not engine.is_leaving:
                engine.retry_at = math.inf  # 1
                self._placement.start(engine.number)
        number = 0 if self.is_down else self._scaling.step(self._needed(), now)  # 2
        self._grow(number)
        self._shrink(number)
        for engine in [each for each in self.engines.values() if each.is_leaving]:
            if not self._is_used(engine) or engine.leave_by <= now:
                del self.engines[engine.number]  # 5
                if not engine.has_failed:
                    self._placement.stop(engine.number)
        self._update_roster()

    def _needed(self) -> int:
        queued = sum(demand.queued for demand in self._demands.values())
        ours = {engine.address for engine in self.engines.values()}
        running = sum(
            count
            for demand in self._demands.values()
            for address, count in demand.running.items()
            if address in ours
        )
        limits = [demand.at_once for demand in self._demands.values() if demand.at_once]
        slots = min([self._slots, *limits])
        return needed(queued=queued, running=running, slots=slots)

    @property
    def _staying(self) -> list[Engine]:
        return [engine for engine in self.engines.values() if not engine.is_leaving]

    def _grow(self, number: int) -> None:
        missing = number - len(self._staying)
        for engine in sorted(self.engines.values(), key=lambda engine: engine.number):
            if missing > 0 and engine.is_leaving:
                engine.is_leaving = False  # 3
                missing -= 1
        free = (n for n in range(len(self.engines) + max(missing, 0)) if n not in self.engines)
        for new in [next(free) for _ in range(missing)]:
            self.engines[new] = Engine(new)
            self._placement.start(new)  # 3

    def _shrink(self, number: int) -> None:
        staying = sorted(self._staying, key=lambda each: (not each.is_listed, each.number))
        for engine in staying[number:]:
            self._leave(engine)  # 4

    def _leave(self, engine: Engine) -> None:
        if not engine.is_leaving:
            engine.is_leaving = True
            self._update_roster()
            engine.left_at = self.roster.revision

    def _is_used(self, engine: Engine) -> bool:
        """Whether a gateway may still send a request to it, or waits for a response."""
        return engine.is_listed and any(
            demand.revision < engine.left_at or demand.running.get(engine.address)
            for demand in self._demands.values()
        )

    def _disagreement(self, engine: Engine) -> str:
        """How it differs from the others; they agree, since one that differs is stopped."""
        mine = _identity(engine)
        others = (_identity(each) for each in self.engines.values() if each is not engine)
        served = next((each for each in others if each is not None), None)
        return "" if mine is None or served is None else mine.difference(served)

    def _fail(self, engine: Engine, reason: str, now: float) -> None:
        where = f"{engine.report.machine}: " if engine.report is not None else ""
        delay = FIRST_RETRY_SECONDS * 2 ** min(engine.failures, 10)
        engine.failures += 1
        engine.failure = where + reason
        engine.retry_at = now + min(delay, MAX_RETRY_SECONDS)
        engine.report, engine.is_listed = None, False
        self._placement.stop(engine.number)

    def _update_roster(self) -> None:
        state, detail, progress = self._summary()
        new = replace(
            self.roster,
            addresses=tuple(each.address for each in self._staying if each.is_listed),
            state=state,
            detail=detail,
            progress=progress,
            model=self._model,
        )
        if new != self.roster:
            self.roster = replace(new, revision=self.roster.revision + 1)
            self._on_roster()

    def _summary(self) -> tuple[ChildState, str, float | None]:
        """State, its reason and its progress, for a gateway without an engine."""
        staying = self._staying
        for engine in staying:
            report = engine.report
            if report is not None:
                return report.state, report.detail, report.progress
        for engine in staying:
            if not engine.has_failed:
                return _S.STARTING, self.waits_for, None
        if staying:
            return _S.BACKOFF, staying[0].failure, None
        if self.is_down:
            return _S.UNREACHABLE, "The engines of the cluster were taken down.", None
        return _S.ASLEEP, "The next request starts an engine on the cluster.", None

    # For people ---------------------------------------------------------------------------------

    @property
    def waits_for(self) -> str:
        """What an engine without a machine waits for."""
        gpus, cpus = self.order.gpus, self.order.cpus
        wanted = f"{gpus:g} GPU" if gpus else f"{cpus:g} CPU"
        return f"Waiting for a machine with {wanted} free."

    def facts(self) -> dict[str, Any]:
        """The state of everything; contains nothing secret."""
        demands = self._demands.values()
        return {
            "model": self.order.model,
            "version": self.order.version,
            "least": self.order.bounds.least,
            "most": self.order.bounds.most,
            "wanted": 0 if self.is_down else self._scaling.current,
            "idle_seconds": self.order.idle_seconds,
            "gpus": self.order.gpus,
            "cpus": self.order.cpus,
            "queued": sum(demand.queued for demand in demands),
            "engines": [self._facts_of(self.engines[number]) for number in sorted(self.engines)],
        }

    def _facts_of(self, engine: Engine) -> dict[str, Any]:
        report = engine.report
        identity = _identity(engine)
        detail = self.waits_for if report is None else report.detail
        return {
            "number": engine.number,
            "state": str(engine.state),
            "machine": report.machine if report else "",
            "address": engine.address,
            "running": sum(each.running.get(engine.address, 0) for each in self._demands.values()),
            "slots": report.slots if report else None,
            "model": report.model if report else "",
            "engine_version": identity.engine_version if identity else "",
            "detail": engine.failure if engine.has_failed else detail,
            "failures": engine.failures,
            "log_file": report.log_file if report else "",
        }


def _identity(engine: Engine) -> Identity | None:
    return None if engine.report is None else engine.report.identity
