"""llama-server as a process: its preparation, its readiness probe, its watchdogs and its logs.

    STARTING -> LOADING -> READY <-> ASLEEP;  from each of them BACKOFF -> LOADING, or FAILED

``managed_process.py`` runs and restarts it; ``engines/watchdogs.py`` decides what counts as
hanging and as idle. Each change of its status goes to ``publish``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from llama_gguf.config.schema import SupervisionSettings
from llama_gguf.engines import exit_reasons
from llama_gguf.engines.activity import Activity
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import listen_flags
from llama_gguf.engines.devices import Device, DeviceHistory, degraded
from llama_gguf.engines.probe import Finding, Probe
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.engines.watchdogs import FlowWatch, IdleWatch, LoadReport, Patience, StallWatch
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.supervisor import child as children
from llama_gguf.supervisor import oom
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.launch import (
    Launch,
    Looker,
    MakeProbe,
    Spawn,
    check_address,
    remove_socket,
)
from llama_gguf.supervisor.managed_process import (
    Clock,
    EndReason,
    Life,
    LoopClock,
    ManagedProcess,
    Reason,
)
from llama_gguf.supervisor.restart_policy import LEAVING, Event, RestartPolicy
from llama_gguf.values import replace
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    from llama_gguf.supervisor.prompt_keeper import PromptKeeper

_log: Final = EventLog(__name__)

PROBE_LOADING_SECONDS: Final = 0.25
PROBE_READY_SECONDS: Final = 1.0
LAST_LINES_SECONDS: Final = 1.0
TERM_SECONDS: Final = 10.0
"""llama-server ignores SIGTERM while a request is in flight; after this, SIGKILL."""
HANG_TERM_SECONDS: Final = 3.0
"""The same if it hangs: then it rarely handles SIGTERM, and requests are waiting."""
ACKNOWLEDGE_SECONDS: Final = 5.0
"""For the gateway to acknowledge a status."""
LIST_DEVICES_SECONDS: Final = 10.0
"""A start waits so long for the list of devices, which may also be complete later."""
SHOWN_LINES: Final = 12
_NO_RESTARTS: Final = {reason.value: 0 for reason in Reason if reason is not Reason.IDLE}
"""An engine that was idle is not restarted, but started when a request needs it."""


class EngineManager(ManagedProcess):
    """One llama-server at a time.

    Several may run in one supervisor: all that is particular to this one is an argument.

    Args:
        name: of its process, for logs.
        replica: its name for people and metrics.
        address: where it listens; no other process may.
        settings: MAX_RESTARTS and the watchdogs, which all engines share.
        prepare: determines how llama-server is started; may take long (a download).
        open_log: opens the log of its next start.
        publish: called with each new status.
        is_stopping: whether `serve` is stopping, so that nothing is started again.
        may_sleep: whether it may be stopped while no request needs it.
        is_last: whether `serve` ends with it.
        has_served: whether this launch is known to work.
        oom_kills: shared by all engines.
        keeper: keeps its prompts; None if PROMPT_CACHE is off.
        first_revision: of its statuses: above those of an earlier engine at the same address.
        rng: for the delays between restarts.
        spawn: starts a process.
        make_probe: makes a probe; called once per life.
        clock: for restarts and watchdogs.
    """

    def __init__(
        self,
        name: str,
        address: EngineAddress,
        *,
        settings: SupervisionSettings,
        prepare: Callable[[], Awaitable[Launch]],
        open_log: Callable[[], LogWriter],
        publish: Callable[[EngineStatus], None],
        is_stopping: Callable[[], bool],
        rng: Callable[[], float],
        replica: str = "0",
        may_sleep: Callable[[], bool] = lambda: True,
        is_last: Callable[[], bool] = lambda: True,
        has_served: bool = False,
        oom_kills: oom.KillCount | None = None,
        keeper: PromptKeeper | None = None,
        first_revision: int = 0,
        spawn: Spawn = children.spawn,
        make_probe: MakeProbe = Probe,
        clock: Clock | None = None,
    ) -> None:
        # A model that cannot be loaded the first time cannot be loaded the second time either.
        policy = RestartPolicy(
            max_deaths=settings.max_restarts, max_first_deaths=0, has_served=has_served, rng=rng
        )
        super().__init__(policy, clock or LoopClock())
        self._name = name
        self._address = address
        self._settings = settings
        self._prepare = prepare
        self._open_log = open_log
        self._publish = publish
        self._is_serve_stopping = is_stopping
        self._may_sleep = may_sleep
        self._is_last = is_last
        self._oom_kills = oom_kills or oom.KillCount()
        self._spawn = spawn
        self._make_probe = make_probe
        self._launch: Launch
        self._keeper = keeper
        self.predecessor: EngineManager | None = None
        """The engine that it replaces, and that serves until it is ready."""
        self._is_draining = False
        self._activity: Activity | None = None
        self._has_activity = asyncio.Event()
        self._requested = asyncio.Event()
        self._log: LogWriter | None = None
        self._listing: asyncio.Task[Sequence[Device] | None]
        self._device_history = DeviceHistory()
        self.status = EngineStatus(
            ChildState.STARTING,
            since=wall_now(),
            replica=replica,
            address=address.key,
            restarts=_NO_RESTARTS,
            revision=first_revision,
            prompt_cache={} if keeper is None else keeper.facts,
        )

    # From outside -------------------------------------------------------------------------------

    def on_activity(self, activity: Activity | None) -> None:
        """Process a report of the gateway; None when there is no gateway."""
        self._activity = activity
        self._has_activity.set()
        if activity is not None and activity.engine_requested:
            self.wake()

    def on_owners(self, owners: Sequence[str] | None) -> None:
        """The gateway has sent requests of these keys; None if it died without reporting all."""
        if self._keeper is None:
            return
        if owners is None:
            self._keeper.on_gateway_lost()
        else:
            self._keeper.on_owners(owners)

    async def save_prompts(self, *, is_replaced: bool = False) -> None:
        """Save what its slots hold, before it is stopped, or replaced while it may still work."""
        is_there = self.status.state in (ChildState.READY, ChildState.DRAINING)
        if self._keeper is None or self.child is None:
            return
        if not is_there:
            await self._keeper.until_saved()  # it may be about to sleep
            return
        save = self._keeper.save_for_replacement if is_replaced else self._keeper.save
        if await save():
            self._publish_prompts(self._keeper)

    def _publish_prompts(self, keeper: PromptKeeper) -> None:
        self._set_status(replace(self.status, prompt_cache=keeper.facts))

    def wake(self) -> None:
        """Start it again if it is being stopped, or was, because no request needed it."""
        self._requested.set()

    def drain(self) -> None:
        """Let it finish the requests that it has; it is not started again after its end."""
        self._is_draining = True
        if self.status.serves:
            self._move(Event.DRAINS)

    async def until_drained(self) -> None:
        """Wait until the gateway sends it nothing, and it has no request."""
        while (
            self._activity is None
            or self._activity.acknowledged_revision != self.status.revision
            or self._activity.running
        ):
            self._has_activity.clear()
            await self._has_activity.wait()

    def change_launch(self, launch: Launch, settings: SupervisionSettings) -> None:
        """Start it by *launch* the next time."""
        self._launch = launch
        self._settings = settings

    def report(self, detail: str, progress: float | None = None) -> None:
        """Publish the progress of the preparation of the first start."""
        self._set_status(replace(self.status, detail=detail, progress=progress))

    @property
    def log_file(self) -> str:
        """The path of the present life's log; empty while there is none."""
        return "" if self._log is None else self._log.file.path

    def reopen_log(self) -> None:
        if self._log is not None:
            self._log.reopen()

    def _move(self, event: Event, *, detail: str = "") -> None:
        super()._move(event)
        if event is Event.DIED:
            detail = self.status.detail  # until the death has been explained
        elif event is Event.SERVES:
            detail = degraded(self.status.missing_devices)
        self._set_status(self.status.moved(self.state, wall_now(), detail=detail))

    def _set_status(self, status: EngineStatus) -> None:
        if status != self.status:
            self.status = replace(status, revision=status.revision + 1)
            self._publish(self.status)

    # Its lives ----------------------------------------------------------------------------------

    async def run(self) -> int:
        self._launch = await self._prepare()
        self.status = replace(self.status, facts=self._launch.facts)
        return await super().run()

    async def _before_start(self) -> None:
        # Not while it loads: on a GPU, the list itself takes memory for a moment. A peer that is
        # switched off may delay the list for minutes; then it delays the load as well.
        loop = asyncio.get_running_loop()
        self._listing = loop.create_task(self._launch.list_devices(), name="list the devices")
        await asyncio.wait([self._listing], timeout=LIST_DEVICES_SECONDS)

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[Child]:
        kills_before = self._oom_kills.now()
        child = await self._start()
        self._log = log = self._open_log()
        _log.info(
            "engine_started",
            "llama-server started as process {pid}; its output is in {file}",
            pid=child.pid,
            file=log.file.path,
        )
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(child.read_output(log.write))
            yield child
            child.kill_group()  # the processes that it has started
            # A descendant that has left the group may keep the pipe open forever.
            await asyncio.wait([reading], timeout=LAST_LINES_SECONDS)
            reading.cancel()
        self._log = None
        log.close(LAST_LINES_SECONDS)
        remove_socket(self._address.socket)
        child.was_out_of_memory = self._oom_kills.claim(kills_before) or (
            child.returncode == -signal.SIGKILL and oom.kernel_names(child.pid)
        )

    async def _start(self) -> Child:
        """Start the process.

        Raises:
            UserError: its port is taken, and it has never been ready.
            OSError: it cannot be started now.
        """
        try:
            check_address(self._address)
        except UserError as error:
            if self.status.load_seconds is None:
                raise
            raise OSError(str(error)) from None
        launch = self._launch
        words = launch.argv if self._keeper is None else await self._keeper.argv_of(launch)
        argv = [*words, *listen_flags(self._address)]
        return await self._spawn(self._name, argv, environ=launch.environ, reads_output=True)

    def _is_stopping(self) -> bool:
        return self._is_draining or self._is_serve_stopping()

    async def _until_requested(self) -> None:
        await self._requested.wait()
        _log.info("engine_woken", "A request arrived: starting llama-server again")

    def _on_death(self, life: Life) -> None:
        reason, advice = self._explain(life)
        _log.error(
            "engine_died",
            "llama-server died ({status}). {reason} {advice}",
            status=life.status_text,
            reason=reason,
            advice=advice,
            lines=_last_lines(life)[-SHOWN_LINES:],
        )
        text = f"{life.status_text}: {reason}"
        status = self.status.moved(self.state, wall_now(), detail=text)
        restarts = _NO_RESTARTS | self._policy.restarts
        self._set_status(replace(status, last_exit=text, last_advice=advice, restarts=restarts))

    def _explain(self, life: Life) -> tuple[str, str]:
        """Reason and advice."""
        if life.end_reason is not None:
            return life.end_reason.explanation, life.end_reason.advice
        reason, advice = exit_reasons.explain(
            life.returncode, _last_lines(life), was_out_of_memory=life.was_out_of_memory
        )
        if "CTX" in advice and self._launch.sizes:
            advice += f" Current settings: {self._launch.sizes}."
        return reason, advice

    def _on_restart_due(self, seconds: float) -> None:
        _log.info(
            "engine_restart_due",
            "llama-server will be restarted in {seconds:.1f} s",
            seconds=round(seconds, 3),
        )

    def _on_given_up(self, exit_status: int) -> None:
        if not self._is_last():
            _log.error("replica_given_up", "Giving up on llama-server; other replicas serve on")
            return
        _log.error(
            "engine_given_up",
            "Giving up on llama-server; serve exits with status {exit_status}",
            exit_status=exit_status,
        )

    # One life -----------------------------------------------------------------------------------

    async def _watch(self, child: Child) -> EndReason | None:
        probe = self._new_probe()
        return await self._watch_load(child, probe) or await self._watch_service(probe)

    def _new_probe(self) -> Looker:
        patience = self._settings.watchdog_health
        return self._make_probe(self._address, timeout=min(5.0, patience / 3 or 5.0))

    async def _watch_load(self, child: Child, probe: Looker) -> EndReason | None:
        """Wait until it is ready, as long as it makes progress."""
        began_at = self._clock.now()
        stall = StallWatch(self._settings.startup_stall_timeout)
        report = LoadReport()
        while not (finding := await probe.look()).serves:
            now, progress = self._clock.now(), child.progress()
            share = progress.share_of(self._launch.model_bytes)
            if report.check(share, now):
                _log.info(
                    "engine_progress",
                    "The model is still loading after {seconds:.0f} s"
                    if share is None
                    else "The model is still loading after {seconds:.0f} s (about {share:.0%})",
                    seconds=round(now - began_at, 3),
                    share=share,
                )
            if share is not None:
                self._set_status(replace(self.status, progress=round(share, 2)))
            if stall.check(progress, now):
                return self._stalled()
            await self._clock.sleep(PROBE_LOADING_SECONDS)
        load_seconds = round(self._clock.now() - began_at, 3)
        if self._keeper is not None:
            await self._restore_prompts(self._keeper)
        self._on_loaded(finding, load_seconds)
        return None

    async def _restore_prompts(self, keeper: PromptKeeper) -> None:
        """Before the first request is let in."""
        before, self.predecessor = self.predecessor, None
        if before is not None:
            await before.save_prompts(is_replaced=True)
        await keeper.restore(
            self._launch.prompts,
            is_leaving=lambda: self.state in LEAVING or self._is_stopping(),
        )
        self.status = replace(self.status, prompt_cache=keeper.facts)

    def _stalled(self) -> EndReason:
        seconds = self._settings.startup_stall_timeout
        return EndReason(
            Reason.STALL,
            HANG_TERM_SECONDS,
            f"It made no visible progress for {seconds:g} s.",
            "See STARTUP_STALL_TIMEOUT, and its last lines.",
        )

    def _on_loaded(self, finding: Finding, seconds: float) -> None:
        self.status = replace(
            self.status,
            slots=finding.slots,
            model=finding.model,
            request_tokens=finding.request_tokens,
            model_list=finding.model_list,
            load_seconds=seconds,
        )
        _log.info("engine_ready", "The model is ready after {seconds:.1f} s", seconds=seconds)
        self._compare_devices()
        self._move(Event.SERVES)

    def _compare_devices(self) -> None:
        """Note which devices of earlier lives this one lacks; log what has changed."""
        devices = self._listing.result() if self._listing.done() else None
        if devices is None:
            return
        missing = self._device_history.missing(devices)
        if missing == self.status.missing_devices:
            return
        self.status = replace(self.status, missing_devices=missing)
        if missing:
            _log.warning(
                "engine_degraded",
                "llama-server runs without devices that it had before: {devices}",
                devices=missing,
            )
        else:
            _log.info("engine_complete", "llama-server has all of its devices again")

    async def _watch_service(self, probe: Looker) -> EndReason:
        """Probe it periodically, until it has to be ended."""
        settings = self._settings
        health = Patience(settings.watchdog_health)
        flow = FlowWatch(settings.watchdog_stall)
        idle = IdleWatch(settings.idle_stop)
        while True:
            await self._clock.sleep(PROBE_READY_SECONDS)
            finding = await probe.look()
            self._note_sleep(finding)
            self._note_silence(finding)
            now, activity = self._clock.now(), self._activity or Activity()
            if health.check(sign=finding.state is not ChildState.UNREACHABLE, now=now):
                return _hanging(f"It did not respond for {settings.watchdog_health:g} s.")
            if flow.check(activity, now):
                return _hanging(
                    f"It sent nothing on any of its {activity.running} requests "
                    f"for {settings.watchdog_stall:g} s."
                )
            # One that is asleep by itself has nothing to save, and any request would wake it.
            keeper = self._keeper if self.status.state is ChildState.READY else None
            if keeper is not None and await keeper.on_tick(activity):
                self._publish_prompts(keeper)
            is_idle = idle.check(activity, now) and self._may_sleep()
            if is_idle and await self._try_idle_stop():
                if keeper is not None and await keeper.save():
                    self._publish_prompts(keeper)
                _log.info(
                    "engine_asleep",
                    "Stopping llama-server after {seconds:g} s without requests",
                    seconds=settings.idle_stop,
                )
                return EndReason(Reason.IDLE, TERM_SECONDS)

    def _note_sleep(self, finding: Finding) -> None:
        """Publish that it has fallen asleep, or woken, by itself."""
        state = self.status.state
        if finding.state is ChildState.ASLEEP and state is ChildState.READY:
            self._policy.on(Event.SLEEPS, self._clock.now())
            status = self.status.moved(ChildState.ASLEEP, wall_now())
            self._set_status(replace(status, wakes_itself=True))
        elif finding.state is ChildState.READY and state is ChildState.ASLEEP:
            self._move(Event.SERVES)

    def _note_silence(self, finding: Finding) -> None:
        """Publish that it does not respond, or does again: other replicas can take its requests."""
        is_silent = self.status.serves and finding.state is ChildState.UNREACHABLE
        if is_silent != self.status.is_silent:
            self._set_status(replace(self.status, is_silent=is_silent))

    async def _try_idle_stop(self) -> bool:
        """Make new requests wait, so that it can be stopped; False if one was in flight after all.

        No request can be lost once the gateway has acknowledged the status with none in flight.
        """
        if self._is_stopping():
            return False
        self._requested.clear()
        if self.status.state is ChildState.READY:
            self._policy.on(Event.SLEEPS, self._clock.now())
        self._set_status(self.status.moved(ChildState.ASLEEP, wall_now()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                while (
                    self._activity is None
                    or self._activity.acknowledged_revision != self.status.revision
                ):
                    self._has_activity.clear()
                    await self._has_activity.wait()
                if not self._activity.busy:
                    return True
        self._move(Event.SERVES)
        if self._is_draining:
            self._move(Event.DRAINS)
        return False


def _hanging(explanation: str) -> EndReason:
    advice = "See WATCHDOG_HEALTH and WATCHDOG_STALL."
    return EndReason(Reason.HANG, HANG_TERM_SECONDS, explanation, advice)


def _last_lines(life: Life) -> list[str]:
    """Its last output, or why there is none."""
    if life.pid is None:
        return [f"it cannot be started: {life.spawn_error}"]
    return list(life.last_lines)
