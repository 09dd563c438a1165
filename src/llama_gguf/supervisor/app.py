"""Composes `serve`: preparation, supervisor, control socket.

The command parses and prints; what people see meanwhile goes to its ``Display``. The order here is
part of the behaviour: all that can be checked is checked before any process is started. The health
server responds before that: ``start.py``, which imports this module last.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

from llama_gguf.config import settings as settings_module
from llama_gguf.config.parsers import as_text
from llama_gguf.config.settings import Settings, variable
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.status import HEALTH_STATUS, ChildState, EngineStatus
from llama_gguf.events import EventLog
from llama_gguf.models.progress import Meter
from llama_gguf.net.threads import run_detached
from llama_gguf.supervisor import checks, reaper
from llama_gguf.supervisor.boot_log import BOOT_LOG, BootLog
from llama_gguf.supervisor.control_socket import ControlSocket
from llama_gguf.supervisor.launch import Launch, check_address
from llama_gguf.supervisor.local_fleet import Setup
from llama_gguf.supervisor.operations import Operations
from llama_gguf.supervisor.preparation import Preparation
from llama_gguf.supervisor.supervisor import Supervisor
from llama_gguf.values import replace
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    from llama_gguf.supervisor.prompts import Owners, PromptCache

_log: Final = EventLog(__name__)

GATEWAY_SECONDS: Final = 30.0
"""In which the gateway should respond, before the first commands to try are shown without it."""

LoadAgain = Callable[[], tuple[Settings, Mapping[str, str]]]
"""The settings, with folders filled in, and the source of each. Raises UserError."""


class Display(Protocol):
    """What people see of `serve`."""

    def on_checked(self) -> None:
        """All checks have passed, and nothing has been started yet."""

    def download_meter(self, label: str) -> AbstractContextManager[Meter]:
        """Show the progress of a download."""

    def show_load(self, model: str, share: float | None) -> None:
        """Show that *model* is loading: *share* of it, from 0 to 1, or None if unknown."""

    def hide_load(self) -> None: ...

    def show_ready(self, model: str, context: int | None, chat_key: str | None) -> None:
        """*model* is served for the first time. Called on a thread, as it may read files.

        Args:
            model: the name that clients use.
            context: tokens that one request may use; None if unknown.
            chat_key: the id of a key to chat with; empty if there is none; None if unknown.
        """


@contextlib.contextmanager
def _no_children_left() -> Iterator[None]:
    """End the remaining children at exit, such as a tool of the GPU's driver that hangs."""
    try:
        yield
    finally:
        reaper.kill_all()


class App:
    """One run of `serve`.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        environ: our own environment.
        sources: the source of each setting, for the log.
        display: what people see.
        boot_log: the log of this start.
        is_stop_requested: whether a signal has already requested the end.
        load_again: reads the settings and their sources again; without, they stay.
        owners: whose prompts may be kept; without, none are.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        sources: Mapping[str, str],
        display: Display,
        boot_log: BootLog,
        is_stop_requested: Callable[[], bool] = lambda: False,
        load_again: LoadAgain | None = None,
        owners: Owners | None = None,
    ) -> None:
        self._settings = settings
        self._load_again = load_again or (lambda: (settings, sources))
        self._environ = environ
        self._owners = owners
        self._display = display
        self._boot_log = boot_log
        self._started_at = wall_now()
        self._is_stop_requested = is_stop_requested
        self._has_shown_ready = False
        self._showing: asyncio.Task[None] | None = None
        self._supervisor: Supervisor | None = None
        self._preparation = Preparation(
            settings,
            environ=environ,
            sources=sources,
            download_meter=display.download_meter,
        )

    def run(self, listener: socket.socket) -> int:
        """Serve on *listener*, until a signal or until a process is given up.

        Raises:
            UserError: an address is taken, or model or engine is missing.
        """
        settings = self._settings
        try:
            for number in range(checks.least_replicas(settings.engine.replicas)):
                check_address(EngineAddress.of(settings.upstream, number))
            self._preparation.check()
            self._display.on_checked()
            with _no_children_left(), asyncio.Runner() as runner:
                self._supervisor = Supervisor(
                    settings,
                    environ={
                        **gateway_environment(settings, self._environ),
                        BOOT_LOG: self._boot_log.path,
                    },
                    listener=listener,
                    prepare=self._prepare,
                    prepare_again=self._prepare_again,
                    on_status=self._on_status,
                    on_reopen=self._boot_log.reopen,
                    prompts=self._prompt_cache(),
                )
                if self._is_stop_requested():
                    return 0
                return runner.run(self._run(self._supervisor))
        finally:
            self._display.hide_load()

    def _prompt_cache(self) -> PromptCache | None:
        settings = self._settings
        if self._owners is None or not settings.prompts.prompt_cache:
            return None
        from llama_gguf.prompt_cache.folder import Folder  # noqa: PLC0415  # most servers keep no prompts
        from llama_gguf.supervisor.prompts import PromptCache  # noqa: PLC0415

        return PromptCache(Folder.of(settings.prompts, settings.logs.instance_id), self._owners)

    async def _run(self, supervisor: Supervisor) -> int:
        settings = self._settings
        operations = Operations(
            settings, supervisor, lambda: self._preparation.model_name, self._started_at
        )
        port, handlers = settings.listen.port, operations.handlers()
        async with ControlSocket(settings.model.data_dir, port, handlers):
            return await supervisor.run()

    @property
    def health_status(self) -> int:
        """The status of the health port with HEALTH_MODE=ready."""
        return 204 if self._supervisor is None else HEALTH_STATUS[self._supervisor.health_state]

    async def _prepare(self) -> Sequence[Launch]:
        assert self._supervisor is not None
        return await self._preparation.prepare(self._supervisor.report_preparation)

    async def _prepare_again(self, on_progress: Callable[[str], None]) -> Sequence[Setup]:
        """How the engines are started by the settings as they are now.

        Raises:
            UserError: a setting is invalid, or model or engine is missing.
        """
        loaded, sources = await run_detached(self._load_again)
        if names := checks.fixed_changes(self._settings, loaded):
            _log.warning(
                "restart_ignores",
                "Settings whose changes need a new start of `serve`: {settings}",
                settings=[variable(name) for name in names],
            )
        settings = replace(
            self._settings,
            model=loaded.model,
            engine=loaded.engine,
            supervision=loaded.supervision,
        )
        checks.check(settings)
        preparation = Preparation(
            settings,
            environ=self._environ,
            sources=sources,
            download_meter=self._display.download_meter,
        )
        await run_detached(preparation.check)
        launches = await preparation.prepare(lambda text, share: on_progress(text))
        self._preparation = preparation
        return [Setup(launch, settings.supervision) for launch in launches]

    def _on_status(self, status: EngineStatus) -> None:
        """Show people the state: a bar while the model loads, then the first commands to try."""
        assert self._supervisor is not None
        model = self._preparation.model_name
        if status.state is ChildState.LOADING:
            self._display.show_load(model, status.progress)
            return
        self._display.hide_load()
        is_first = status.state is ChildState.READY and not self._has_shown_ready
        if is_first and not self._supervisor.is_leaving:
            self._has_shown_ready = True
            self._showing = asyncio.get_running_loop().create_task(
                self._show_ready(self._supervisor, model, status.request_tokens), name="ready"
            )

    async def _show_ready(self, supervisor: Supervisor, model: str, context: int | None) -> None:
        # The gateway has the keys, and the modules that read them, which take 1 MB.
        facts = await supervisor.gateway.facts(within_seconds=GATEWAY_SECONDS)
        chat_key = None if facts is None else str(facts["chat_key"])
        # Off the loop: it may read the keys file, whose disk may hang.
        threading.Thread(
            target=self._display.show_ready,
            args=(model, context, chat_key),
            name="ready",
            daemon=True,
        ).start()


def gateway_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Our environment with explicit settings, since the gateway does not get our flags."""
    spelt_out = {
        settings_module.variable(name): as_text(settings.value(name))
        for name in settings_module.USED_BY["gateway"]
    }
    # The file may have changed meanwhile, or not be readable any more.
    return {**environ, **spelt_out, settings_module.variable("config_file"): ""}
