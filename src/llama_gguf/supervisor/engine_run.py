"""Manages llama-server: starts, monitors, stops and restarts it.

It is ended when it hangs or when nobody needs it, and started again when it has died or is
wanted.

    STARTING -> LOADING -> READY <-> ASLEEP;  from each of them BACKOFF -> LOADING, or FAILED

What follows from what is in ``supervisor/restart_policy.py``, what counts as hanging and idle in
``engines/watchdogs.py``; how it is goes to ``publish`` at each change.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from llama_gguf.config.settings import Settings
from llama_gguf.engines import exit_reasons
from llama_gguf.engines.activity import Activity
from llama_gguf.engines.probe import Finding, Probe
from llama_gguf.engines.status import EngineState, EngineStatus
from llama_gguf.engines.watchdogs import FlowWatch, IdleWatch, LoadReport, Patience, StallWatch
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.net.clock import wall_now
from llama_gguf.supervisor import child as children
from llama_gguf.supervisor import oom
from llama_gguf.supervisor.child import Child
from llama_gguf.supervisor.engine_log import open_engine_log
from llama_gguf.supervisor.launch import (
    Launch,
    Looker,
    MakeProbe,
    Spawn,
    check_address,
    remove_socket,
)
from llama_gguf.supervisor.restart_policy import LEAVING, Event, GiveUp, RestartPolicy, SpawnAt

_log: Final = EventLog(__name__)

LOOK_LOADING_SECONDS: Final = 0.25
LOOK_READY_SECONDS: Final = 1.0
LAST_WORDS_SECONDS: Final = 1.0
TERM_SECONDS: Final = 10.0
"""llama-server ignores SIGTERM while a request is in flight; after this, SIGKILL."""
HANG_TERM_SECONDS: Final = 3.0
"""The same for one that hangs: it hardly ever heeds SIGTERM, and requests are waiting."""
ANSWER_SECONDS: Final = 5.0
"""For the gateway to say that it has heard of a state."""
SHOWN_LINES: Final = 12


class Ending(enum.Enum):
    """Why one life of the engine was over. The values are what restarts are counted by."""

    CRASH = "crash"  # it died by itself
    STALL = "stall"  # it did not get on with loading
    HANG = "hang"  # it did not answer, or nothing came back from it
    IDLE = "idle"  # nobody needed it


class EngineKeeper:
    """One llama-server at a time.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        publish: called with each new status.
        is_leaving: whether we have been asked to leave, so that nothing is started again.
        rng: for the delays between restarts.
        spawn: makes processes.
        make_probe: makes what looks at them, once per life.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        publish: Callable[[EngineStatus], None],
        is_leaving: Callable[[], bool],
        rng: Callable[[], float],
        spawn: Spawn = children.spawn,
        make_probe: MakeProbe = Probe,
    ) -> None:
        self._settings = settings
        self._publish = publish
        self._is_leaving = is_leaving
        self._spawn = spawn
        self._make_probe = make_probe
        # A model that could not be loaded the first time will not be better the second.
        self._policy = RestartPolicy(max_deaths=settings.max_restarts, max_first_deaths=0, rng=rng)
        self._activity: Activity | None = None
        self._heard = asyncio.Event()
        self._wanted = asyncio.Event()
        # Of the last life:
        self._ending = Ending.CRASH
        self._hang = ""
        self._last_lines: list[str] = []
        self._was_out_of_memory = False
        self._log: LogWriter | None = None
        self.child: Child | None = None
        self.status = EngineStatus(EngineState.STARTING, since=wall_now())

    # From outside -------------------------------------------------------------------------------

    def hear(self, activity: Activity | None) -> None:
        """Take what the gateway tells; None when there is no gateway."""
        self._activity = activity
        self._heard.set()
        if activity is not None and activity.wants_engine:
            self._wanted.set()

    def report(self, detail: str, progress: float | None = None) -> None:
        """Tell the world how far the preparation of the first start has come."""
        self._tell(replace(self.status, detail=detail, progress=progress))

    def reopen_log(self) -> None:
        if self._log is not None:
            self._log.reopen()

    def leave(self) -> None:
        """The end: whatever runs is about to be stopped, and nothing is started any more."""
        if self.status.state not in LEAVING:
            self._move(Event.STOP)
        if self.child is None and self.status.state is EngineState.STOPPING:
            self._move(Event.GONE)

    def _move(self, event: Event, *, detail: str = "") -> None:
        """Let *event* happen, and tell the world."""
        state = self._policy.on(event, self._now())
        self._tell(self.status.moved(state, wall_now(), detail=detail))

    def _tell(self, status: EngineStatus) -> None:
        if status != self.status:
            self.status = replace(status, revision=status.revision + 1)
            self._publish(self.status)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    # Its lives ----------------------------------------------------------------------------------

    async def keep(self, prepare: Callable[[], Awaitable[Launch]]) -> int:
        """Keep one until it is given up, or we are leaving. Returns its exit status."""
        launch = await prepare()
        self.status = replace(self.status, facts=launch.facts)
        while True:
            returncode = await self._live(launch)
            if self.status.state in LEAVING:
                self.leave()
                return 0
            if self._ending is Ending.IDLE:
                await self._wanted.wait()
                _log.info("engine_woken", "A request arrived: starting llama-server again")
                continue
            decision = self._bury(returncode)
            if self._is_leaving():
                self.leave()
                return 0
            if isinstance(decision, GiveUp):
                _log.error(
                    "engine_given_up",
                    "Giving up on llama-server; serve exits with status {exit_status}",
                    exit_status=decision.exit_status,
                )
                return decision.exit_status
            _log.info(
                "engine_restart_due",
                "llama-server will be restarted in {seconds:.1f} s",
                seconds=round(decision.when - self._now(), 3),
            )
            await asyncio.sleep(decision.when - self._now())

    async def _live(self, launch: Launch) -> int:
        """One life of llama-server, from spawn to reap. Returns its return code."""
        self._ending = Ending.CRASH
        self._was_out_of_memory = False
        kills_before = oom.oom_kills()
        self._move(Event.SPAWNED)
        try:
            child = await self._start(launch)
        except OSError as error:
            self._last_lines = [f"it cannot be started: {error.strerror or error}"]
            return 1
        self.child = child
        self._log = log = open_engine_log(self._settings)
        _log.info(
            "engine_started",
            "llama-server started as process {pid}; its output is in {file}",
            pid=child.pid,
            file=log.file.path,
        )
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(child.read_output(log.write))
            watching = group.create_task(self._watch(child, launch))
            await child.wait()
            self._on_death()  # at once: what is sent from now on is lost
            watching.cancel()
            child.kill_group()  # what it may have started
            # Its last words; a helper that has left the group may hold the pipe open for ever.
            await asyncio.wait([reading], timeout=LAST_WORDS_SECONDS)
            reading.cancel()
        self._log = self.child = None
        log.close(LAST_WORDS_SECONDS)
        remove_socket(self._settings.backend_socket)
        self._last_lines = list(child.last_lines)
        self._was_out_of_memory = oom.oom_kills() > kills_before or (
            child.returncode == -signal.SIGKILL and oom.kernel_names(child.pid)
        )
        return child.returncode

    async def _start(self, launch: Launch) -> Child:
        """Make the process.

        Raises:
            UserError: its port is taken, and it never had it.
            OSError: it cannot be started now.
        """
        try:
            check_address(self._settings)
        except UserError as error:
            if self.status.load_seconds is None:
                raise
            raise OSError(str(error)) from None
        return await self._spawn(
            "llama-server", launch.argv, environ=launch.environ, reads_output=True
        )

    def _on_death(self) -> None:
        """It is gone, and why will be told in a moment."""
        if self.status.state not in LEAVING and self._ending is not Ending.IDLE:
            self._move(Event.DIED, detail=self.status.detail)

    def _bury(self, returncode: int) -> SpawnAt | GiveUp:
        """Say why it died, count it, and decide what follows."""
        status = exit_reasons.status_text(returncode)
        reason, advice = self._explain(returncode)
        _log.error(
            "engine_died",
            "llama-server died ({status}). {reason} {advice}",
            status=status,
            reason=reason,
            advice=advice,
            lines=self._last_lines[-SHOWN_LINES:],
        )
        decision = self._policy.died(
            exit_reasons.exit_status(returncode), self._now(), reason=self._ending.value
        )
        text = f"{status}: {reason}"
        died = self.status.moved(self._policy.state, wall_now(), detail=text)
        self._tell(replace(died, last_exit=text, restarts=dict(self._policy.restarts)))
        return decision

    def _explain(self, returncode: int) -> tuple[str, str]:
        settings = self._settings
        if self._ending is Ending.STALL:
            timeout = f"{settings.startup_stall_timeout:g}"
            return (
                f"It made no visible progress for {timeout} s.",
                "See STARTUP_STALL_TIMEOUT, and its last lines.",
            )
        if self._ending is Ending.HANG:
            return self._hang, "See WATCHDOG_HEALTH and WATCHDOG_STALL."
        reason, advice = exit_reasons.explain(
            returncode, self._last_lines, was_out_of_memory=self._was_out_of_memory
        )
        if "CTX" in advice:
            facts = f"CTX={settings.ctx}, PARALLEL={settings.parallel}, NGL={settings.ngl}"
            advice += f" Current settings: {facts}."
        return reason, advice

    # One life -----------------------------------------------------------------------------------

    async def _watch(self, child: Child, launch: Launch) -> None:
        """See it through loading and serving; end it when that is what has to be done."""
        probe = self._new_probe()
        ending = await self._watch_load(child, launch, probe) or await self._watch_service(probe)
        self._ending = ending
        if ending is Ending.IDLE:
            _log.info(
                "engine_asleep",
                "Stopping llama-server after {seconds:g} s without requests",
                seconds=self._settings.idle_stop,
            )
            await child.stop(term_seconds=TERM_SECONDS)
        else:
            self._move(Event.HANGS, detail=self._explain(0)[0])
            await child.stop(term_seconds=HANG_TERM_SECONDS)

    def _new_probe(self) -> Looker:
        patience = self._settings.watchdog_health
        return self._make_probe(self._settings, timeout=min(5.0, patience / 3 or 5.0))

    async def _watch_load(self, child: Child, launch: Launch, probe: Looker) -> Ending | None:
        """Wait until it serves, as long as it gets on with that."""
        began_at = self._now()
        stall = StallWatch(self._settings.startup_stall_timeout)
        report = LoadReport()
        while not (finding := await probe.look()).serves:
            now, progress = self._now(), child.progress()
            share = progress.share_of(launch.model_bytes)
            if report.is_due(share, now):
                _log.info(
                    "engine_progress",
                    "The model is still loading after {seconds:.0f} s"
                    if share is None
                    else "The model is still loading after {seconds:.0f} s (about {share:.0%})",
                    seconds=round(now - began_at, 3),
                    share=share,
                )
            if share is not None:
                self._tell(replace(self.status, progress=round(share, 2)))
            if stall.is_stalled(progress, now):
                return Ending.STALL
            await asyncio.sleep(LOOK_LOADING_SECONDS)
        self._on_loaded(finding, round(self._now() - began_at, 3))
        return None

    def _on_loaded(self, finding: Finding, seconds: float) -> None:
        self.status = replace(
            self.status, slots=finding.slots, model=finding.model, load_seconds=seconds
        )
        _log.info("engine_ready", "The model is ready after {seconds:.1f} s", seconds=seconds)
        self._move(Event.SERVES)

    async def _watch_service(self, probe: Looker) -> Ending:
        """Look at it again and again, until it has to be ended."""
        settings = self._settings
        health = Patience(settings.watchdog_health)
        flow = FlowWatch(settings.watchdog_stall)
        idle = IdleWatch(settings.idle_stop)
        while True:
            await asyncio.sleep(LOOK_READY_SECONDS)
            finding = await probe.look()
            self._note_sleep(finding)
            now, activity = self._now(), self._activity or Activity()
            if health.is_over(sign=finding.state is not EngineState.UNREACHABLE, now=now):
                self._hang = f"It did not respond for {settings.watchdog_health:g} s."
                return Ending.HANG
            if flow.is_stuck(activity, now):
                self._hang = (
                    f"It sent nothing on any of its {activity.running} requests "
                    f"for {settings.watchdog_stall:g} s."
                )
                return Ending.HANG
            if idle.is_idle(activity, now) and await self._falls_asleep():
                return Ending.IDLE

    def _note_sleep(self, finding: Finding) -> None:
        """It may have fallen asleep, or woken, by itself."""
        state = self.status.state
        if finding.state is EngineState.ASLEEP and state is EngineState.READY:
            self._policy.on(Event.SLEEPS, self._now())
            status = self.status.moved(EngineState.ASLEEP, wall_now())
            self._tell(replace(status, wakes_itself=True))
        elif finding.state is EngineState.READY and state is EngineState.ASLEEP:
            self._move(Event.SERVES)

    async def _falls_asleep(self) -> bool:
        """Have requests wait from now on; False when one was under way after all.

        Only when the gateway has heard of it, and nothing is under way then, can nothing be lost.
        """
        if self._is_leaving():
            return False
        self._wanted.clear()
        if self.status.state is EngineState.READY:
            self._policy.on(Event.SLEEPS, self._now())
        self._tell(self.status.moved(EngineState.ASLEEP, wall_now()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                while self._activity is None or self._activity.heard != self.status.revision:
                    self._heard.clear()
                    await self._heard.wait()
                if not self._activity.busy:
                    return True
        self._move(Event.SERVES)
        return False
