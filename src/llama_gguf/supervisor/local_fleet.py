"""The engines of one `serve`: replicas with the same model, each supervised on its own.

A replica that is given up leaves the others serving; `serve` ends with the last one. While no
request needs them, replicas are stopped from the last to the first, and started from the first.

In a rolling restart, a second engine takes over a replica's name: ``replace``. Addresses are
numbered apart from replicas, so that it can listen on one that is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from llama_gguf import events
from llama_gguf.config.schema import SupervisionSettings
from llama_gguf.config.settings import Settings
from llama_gguf.engines.activity import Activity
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.supervisor import child as children
from llama_gguf.supervisor import replacement
from llama_gguf.supervisor.engine_run import HANG_TERM_SECONDS, TERM_SECONDS, EngineManager
from llama_gguf.supervisor.launch import Launch, MakeProbe, Spawn, check_address
from llama_gguf.supervisor.managed_process import Clock, LoopClock
from llama_gguf.supervisor.oom import KillCount
from llama_gguf.supervisor.replacement import Event, Replacement
from llama_gguf.supervisor.restart_policy import LEAVING
from llama_gguf.transitions import after
from llama_gguf.values import Value, replace

if TYPE_CHECKING:
    from llama_gguf.supervisor.prompt_keeper import Client, PromptKeeper
    from llama_gguf.supervisor.prompts import PromptCache

_log: Final = EventLog(__name__)

SPARE_ADDRESSES: Final = 16
"""After those of the replicas: as many are tried for one that no other program uses."""

_S = ChildState
_LOADS: Final = frozenset({_S.STARTING, _S.LOADING})
_GONE: Final = frozenset({_S.STOPPING, _S.STOPPED})


class Setup(Value):
    """What decides how a replica runs."""

    launch: Launch
    supervision: SupervisionSettings


class Member:
    """One engine of the fleet."""

    def __init__(self, number: int, address_number: int, manager: EngineManager) -> None:
        self.number = number
        """Of its replica."""
        self.address_number = address_number
        self.manager = manager
        self.setup: Setup
        self.task: asyncio.Task[int] | None = None
        self.is_on_trial = False
        """Its failure is not the replica's: another engine takes its place."""
        self.is_retiring = False
        self.is_over = False
        """Whether it was given up, or has been stopped."""

    @property
    def label(self) -> str:
        return str(self.number)

    @property
    def status(self) -> EngineStatus:
        return self.manager.status

    @property
    def error(self) -> BaseException | None:
        """What ended it, if that was an error and not a death, such as a port that is taken."""
        if self.task is None or not self.task.done() or self.task.cancelled():
            return None
        return self.task.exception()


class LocalFleet:
    """All engines, from the first spawn to the last reaping.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        prepare: determines how each replica is started; may take long (a download).
        open_log: opens the log of the next start of a replica.
        publish: called with each new status of a replica.
        is_stopping: whether `serve` is stopping.
        rng: for the delays between restarts.
        prompts: keeps the prompts of the engines; None if PROMPT_CACHE is off.
        spawn: starts a process.
        make_probe: makes a probe.
        make_client: makes what saves and restores the slots of an engine; None = ``SlotClient``.
        clock: for restarts and watchdogs.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        prepare: Callable[[], Awaitable[Sequence[Launch]]],
        open_log: Callable[[str], LogWriter],
        publish: Callable[[EngineStatus], None],
        is_stopping: Callable[[], bool],
        rng: Callable[[], float],
        prompts: PromptCache | None = None,
        spawn: Spawn = children.spawn,
        make_probe: MakeProbe = Probe,
        make_client: Callable[[EngineAddress], Client] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._prepare = prepare
        self._open_log = open_log
        self._publish = publish
        self._is_stopping = is_stopping
        self._rng = rng
        self._prompts = prompts
        self._spawn = spawn
        self._make_probe = make_probe
        self._make_client = make_client
        self._clock = clock
        self._changed = asyncio.Event()
        self._revisions = itertools.count(step=1 << 20)
        """Each engine has its own range, so that no revision is used twice at one address."""
        self._oom_kills = KillCount()
        self._is_replacing = False
        self._exit_status = 0
        self._error: BaseException | None = None
        self.is_prepared = False
        self.members: tuple[Member, ...] = ()
        """In the order of their replicas. Never empty: the health server's thread reads it."""
        self._first = self._new_member(0, 0, settings.supervision, self._prepare_all)

    # From outside -------------------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        """A summary of all replicas."""
        return EngineStatus.of_all([member.status for member in self.members])

    async def run(self) -> int:
        """Serve until the last replica is given up, or until ``stop``. Returns the exit status.

        Raises:
            UserError: the preparation failed, or no replica could be started.
        """
        if self._is_stopping():
            return 0
        self._start(self._first)
        watching = None
        if self._prompts is not None:
            watching = asyncio.get_running_loop().create_task(
                self._prompts.watch_keys(), name="remove the prompts of revoked keys"
            )
        try:
            return await self._run()
        finally:
            if watching is not None:
                watching.cancel()

    async def _run(self) -> int:
        while self._error is None and (
            self._is_replacing or not all(member.is_over for member in self.members)
        ):
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        return self._exit_status

    def on_activity(self, activity: Activity | None) -> None:
        """Process a report of the gateway; None when there is no gateway."""
        if activity is None:
            for member in self.members:
                member.manager.on_activity(None)
            return
        for member in self.members:
            view = activity.of(member.status.address)
            if not any(_is_awake(each) for each in self.members if each is not member):
                # A request that is still being read needs the last one that is awake.
                view = replace(view, busy=activity.busy)
            member.manager.on_activity(view)
        if activity.engine_requested:
            self._wake_next()

    def on_owners(self, owners: Mapping[str, Sequence[str]] | None) -> None:
        """Whose requests the gateway has sent, by address; None if it died without a report."""
        for member in self.members:
            member.manager.on_owners(
                None if owners is None else owners.get(member.status.address, ())
            )

    def _wake_next(self) -> None:
        """Wake the first replica that is asleep, unless another one is on its way already."""
        asleep = [
            member
            for member in self.members
            if member.status.state is _S.ASLEEP and not member.status.wakes_itself
        ]
        if asleep and not any(member.status.state in _LOADS for member in self.members):
            asleep[0].manager.wake()

    def report(self, detail: str, progress: float | None) -> None:
        """Publish how far the preparation of the first start is."""
        self._first.manager.report(detail, progress)

    def reopen_logs(self) -> None:
        for member in self.members:
            member.manager.reopen_log()

    async def stop_idle(self) -> None:
        """Stop the engines that have no process: they wait for a restart, or are asleep."""
        for member in self.members:
            if member.manager.child is None:
                await self._stop(member, 0.0)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop the others, all at once; when *hurry* is set, they are killed."""
        hurrying = asyncio.get_running_loop().create_task(self._kill_all(hurry))
        if not hurry.is_set():
            await asyncio.gather(*(member.manager.save_prompts() for member in self.members))
        await asyncio.gather(*(self._stop(member, TERM_SECONDS) for member in self.members))
        hurrying.cancel()

    async def _kill_all(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for member in self.members:
            if member.manager.child is not None:
                member.manager.child.kill_group()

    # Its members --------------------------------------------------------------------------------

    def _new_member(
        self,
        number: int,
        address_number: int,
        supervision: SupervisionSettings,
        prepare: Callable[[], Awaitable[Launch]],
        *,
        has_served: bool = False,
        in_place_of: Member | None = None,
    ) -> Member:
        label = str(number)
        address = EngineAddress.of(self._settings.upstream, address_number)
        manager = EngineManager(
            "llama-server",
            address,
            settings=supervision,
            prepare=prepare,
            open_log=lambda: self._open_log(label),
            publish=lambda status: self._on_status(member, status),
            is_stopping=self._is_stopping,
            rng=self._rng,
            replica=label,
            may_sleep=lambda: self._may_sleep(member),
            is_last=lambda: self._is_last(member),
            has_served=has_served,
            oom_kills=self._oom_kills,
            keeper=self._keeper(address),
            first_revision=next(self._revisions),
            spawn=self._spawn,
            make_probe=self._make_probe,
            clock=self._clock,
        )
        member = Member(number, address_number, manager)
        others = (each for each in self.members if each is not in_place_of)
        self.members = tuple(sorted((*others, member), key=lambda each: each.number))
        return member

    def _keeper(self, address: EngineAddress) -> PromptKeeper | None:
        if self._prompts is None:
            return None
        from llama_gguf.engines.slot_client import SlotClient  # noqa: PLC0415  # most servers keep no prompts
        from llama_gguf.supervisor.prompt_keeper import PromptKeeper  # noqa: PLC0415

        client = (self._make_client or SlotClient)(address)
        clock = self._clock or LoopClock()
        return PromptKeeper(self._prompts, client, clock, engine=address.key)

    async def _prepare_all(self) -> Launch:
        """Prepare all replicas, and start those after the first."""
        launches = await self._prepare()
        supervision = self._settings.supervision
        self._first.setup = Setup(launches[0], supervision)
        if len(launches) > 1:
            events.replica.set(self._first.label)
        for number, launch in enumerate(launches[1:], 1):
            self._add(number, number, Setup(launch, supervision))
        self.is_prepared = True
        return launches[0]

    def _add(
        self,
        number: int,
        address_number: int,
        setup: Setup,
        *,
        has_served: bool = False,
        in_place_of: Member | None = None,
    ) -> Member:
        """Start one more engine, or one instead of another that has ended."""

        async def prepare() -> Launch:
            if len({each.number for each in self.members}) > 1:
                events.replica.set(str(number))
            return setup.launch

        member = self._new_member(
            number,
            address_number,
            setup.supervision,
            prepare,
            has_served=has_served,
            in_place_of=in_place_of,
        )
        member.setup = setup
        self._publish(member.status)
        self._start(member)
        return member

    def _start(self, member: Member) -> None:
        loop = asyncio.get_running_loop()
        member.task = loop.create_task(member.manager.run(), name=f"replica {member.label}")
        member.task.add_done_callback(lambda task: self._on_over(member, task))

    def _on_over(self, member: Member, task: asyncio.Task[int]) -> None:
        self._changed.set()
        member.is_over = True
        error = member.error
        if task.cancelled() or (member.is_retiring and isinstance(error, UserError | None)):
            return
        if error is None:
            if task.result() and not member.is_on_trial:
                self._exit_status = task.result()
        elif isinstance(error, UserError) and (member.is_on_trial or not self._is_last(member)):
            _log.error(
                "replica_not_started",
                "Replica {number} cannot be started: {reason}",
                number=member.label,
                reason=str(error),
            )
            if not member.is_on_trial:
                self._exit_status = error.exit_status
            failed = member.status.moved(_S.FAILED, member.status.since, detail=str(error))
            self._on_status(member, replace(failed, revision=failed.revision + 1))
        else:
            self._error = error

    def _is_last(self, member: Member) -> bool:
        others = (each for each in self.members if each is not member)
        # The state changes first: two that are given up at the same moment are both not over yet.
        return not member.is_on_trial and all(
            each.is_over or each.manager.state in LEAVING for each in others
        )

    def _may_sleep(self, member: Member) -> bool:
        """Replicas are stopped from the last to the first: those after it have no process."""
        return all(
            each.manager.child is None and not _is_awake(each)
            for each in self.members
            if each.number > member.number
        )

    def _on_status(self, member: Member, status: EngineStatus) -> None:
        self._changed.set()
        if member.is_retiring and status.state in _GONE:
            return  # another engine takes over its name, and perhaps its address
        if (member.is_on_trial or member.is_retiring) and status.state is _S.FAILED:
            status = replace(status, state=_S.BACKOFF)  # requests wait for what follows
        self._publish(status)

    async def _stop(self, member: Member, term_seconds: float) -> None:
        manager, task = member.manager, member.task
        if task is None:
            return
        if manager.child is None:
            task.cancel()
            await asyncio.wait([task])
            manager.leave()
            return
        manager.leave()
        await manager.child.stop(term_seconds=term_seconds)
        await asyncio.wait([task])

    # A rolling restart --------------------------------------------------------------------------

    async def replace_all(
        self,
        setups: Sequence[Setup],
        *,
        drain_seconds: float,
        on_progress: Callable[[str], None],
    ) -> None:
        """Replace the engines one at a time by those of *setups*; add or remove replicas.

        Raises:
            UserError: an engine did not come up; those after it have not been touched.
        """
        self._is_replacing = True
        try:
            for number, setup in enumerate(setups):
                old = self._member(number)
                if old is None:
                    on_progress(f"Starting replica {number}")
                    await self._add_replica(number, setup)
                elif number and _is_asleep(old):
                    # The first one has shown that the new launch works.
                    old.manager.change_launch(setup.launch, setup.supervision)
                    old.setup = setup
                else:
                    await self.replace(old, setup, drain_seconds, on_progress)
            for member in [each for each in self.members if each.number >= len(setups)]:
                on_progress(f"Removing replica {member.label}")
                await self._retire(member, drain_seconds)
                self._remove(member)
        finally:
            self._is_replacing = False
            self._changed.set()

    def _member(self, number: int) -> Member | None:
        return next((each for each in self.members if each.number == number), None)

    def _free_address(self) -> int | None:
        """The number of an address that neither an engine nor another program uses; None if none.

        An address that was tried in vain is not used by mistake later: each start checks it.
        """
        used = {member.address_number for member in self.members}
        for number in itertools.islice(itertools.count(), len(used) + SPARE_ADDRESSES):
            if number not in used:
                with contextlib.suppress(UserError):
                    check_address(EngineAddress.of(self._settings.upstream, number))
                    return number
        return None

    async def _add_replica(self, number: int, setup: Setup) -> None:
        address_number = self._free_address()
        if address_number is None:
            raise UserError(f"there is no free port for replica {number} after PORT_BACKEND")
        new = self._add(number, address_number, setup)
        new.is_on_trial = True
        if not await self._comes_up(new):
            self._remove(new)
            raise UserError(f"replica {number} did not come up: {_reason(new)}")
        new.is_on_trial = False

    async def replace(
        self,
        old: Member,
        setup: Setup,
        drain_seconds: float,
        on_progress: Callable[[str], None],
    ) -> None:
        """Let an engine by *setup* take the place of *old*.

        Raises:
            UserError: it did not come up.
        """
        state = Replacement.PLANNED
        new = old

        def move(event: Event) -> Replacement:
            return after(replacement.TRANSITIONS, state, event)

        address_number = self._free_address() if await self._has_room(old, setup) else None
        state = move(Event.NO_ROOM if address_number is None else Event.ROOM)
        if address_number is not None:
            on_progress(f"Replica {old.label}: loading the new engine beside the old one")
            new = self._add(old.number, address_number, setup)
            new.is_on_trial = True
            new.manager.predecessor = old.manager
            state = move(await self._load(new))
        if state is Replacement.KEPT:
            self._remove(new)
            raise UserError(
                f"the new engine of replica {old.label} did not come up, so the old one stays: "
                f"{_reason(new)}"
            )
        on_progress(f"Replica {old.label}: waiting for the requests of the old engine")
        await self._retire(old, drain_seconds)
        state = move(Event.DRAINED)
        if state is Replacement.LOADING:
            on_progress(f"Replica {old.label}: starting the new engine")
            new = self._take_over(old, setup)
            new.is_on_trial = True
            state = move(await self._load(new))
        else:
            self._remove(old)
        if state is Replacement.RESTORING:
            reason = _reason(new)
            on_progress(f"Replica {old.label}: starting the old engine again")
            restored = self._take_over(new, old.setup, has_served=True)
            state = move(await self._load(restored))
            outcome = (
                "the old one was started again"
                if state is Replacement.KEPT
                else "the old one could not be started again either"
            )
            raise UserError(
                f"the new engine of replica {old.label} did not come up, and {outcome}: {reason}"
            )
        new.is_on_trial = False
        on_progress(f"Replica {old.label}: replaced")

    async def _has_room(self, old: Member, setup: Setup) -> bool:
        """Whether both fit; an engine that does not serve needs no second one beside it."""
        if not old.status.serves:
            return False
        is_same = setup.launch.model_path == old.setup.launch.model_path
        return await setup.launch.has_room(is_same)

    def _take_over(self, gone: Member, setup: Setup, *, has_served: bool = False) -> Member:
        """Start an engine in the place of *gone*, at its address."""
        return self._add(
            gone.number, gone.address_number, setup, has_served=has_served, in_place_of=gone
        )

    async def _load(self, member: Member) -> Event:
        return Event.SERVES if await self._comes_up(member) else Event.FAILED

    async def _comes_up(self, member: Member) -> bool:
        """Wait until it serves, or is given up."""
        while not (member.status.serves or member.is_over):
            self._changed.clear()
            await self._changed.wait()
        return member.status.serves

    async def _retire(self, member: Member, drain_seconds: float) -> None:
        """Let it finish its requests, then stop it; after *drain_seconds*, they are cut."""
        member.is_retiring = True
        if member.is_over or member.task is None:
            return
        member.manager.drain()
        term_seconds = TERM_SECONDS
        if member.status.state is _S.DRAINING:
            loop = asyncio.get_running_loop()
            draining = loop.create_task(member.manager.until_drained(), name="drain")
            await asyncio.wait(
                [draining, member.task],
                timeout=drain_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not draining.done() and not member.is_over:
                term_seconds = HANG_TERM_SECONDS
                _log.warning(
                    "drain_timed_out",
                    "Replica {number} has requests after {seconds:g} s (DRAIN_TIMEOUT): "
                    "they are cut",
                    number=member.label,
                    seconds=drain_seconds,
                )
            draining.cancel()
            await member.manager.save_prompts()
        await self._stop(member, term_seconds)

    def _remove(self, member: Member) -> None:
        """It is gone: the gateway forgets it."""
        member.is_retiring = True
        self.members = tuple(each for each in self.members if each is not member)
        gone = member.status.moved(_S.STOPPED, member.status.since)
        self._publish(replace(gone, is_removed=True, revision=gone.revision + 1))


def _is_awake(member: Member) -> bool:
    return not member.is_over and member.status.state is not _S.ASLEEP


def _is_asleep(member: Member) -> bool:
    return member.status.state is _S.ASLEEP and not member.status.wakes_itself


def _reason(member: Member) -> str:
    return str(member.error or member.status.last_exit or "it has been stopped")
