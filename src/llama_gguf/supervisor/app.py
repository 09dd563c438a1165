"""Composes `serve`: listeners, health server, preparation, supervisor.

The command parses and prints; what people see meanwhile goes to its ``Display``. The order here is
part of the behaviour: all that can be checked is checked before any process is started, and the
health server responds before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import FrameType
from typing import Final, NoReturn, Protocol

from llama_gguf.config import settings as settings_module
from llama_gguf.config.parsers import as_text
from llama_gguf.config.settings import Settings, variable
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import extra_args, listen_flags
from llama_gguf.engines.status import HEALTH_STATUS, ChildState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.models.progress import Meter
from llama_gguf.net import tls
from llama_gguf.net.clock import wall_now
from llama_gguf.net.listener import listen
from llama_gguf.net.threads import run_detached
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.supervisor import plan, reaper
from llama_gguf.supervisor.boot_log import BOOT_LOG, BootLog
from llama_gguf.supervisor.control_socket import ControlSocket
from llama_gguf.supervisor.health_server import HealthServer
from llama_gguf.supervisor.launch import Launch, check_address
from llama_gguf.supervisor.local_fleet import Setup
from llama_gguf.supervisor.operations import Operations
from llama_gguf.supervisor.preparation import Preparation
from llama_gguf.supervisor.prompts import Owners, PromptCache
from llama_gguf.supervisor.supervisor import Supervisor

_log: Final = EventLog(__name__)

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

    def show_ready(self, model: str, context: int | None) -> None:
        """*model* is served for the first time. Called on a thread, as it may read files.

        Args:
            model: the name that clients use.
            context: tokens that one request may use; None if unknown.
        """


def serve(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    sources: Mapping[str, str],
    display: Display,
    load_again: LoadAgain | None = None,
    owners: Owners | None = None,
) -> int:
    """Serve until a signal, or until a process is given up. Returns the exit status.

    Args:
        settings: with folders filled in.
        environ: our own environment.
        sources: the source of each setting, for the log.
        display: what people see.
        load_again: reads the settings again for a rolling restart; without, they stay.
        owners: whose prompts may be kept; without, none are.

    Raises:
        UserError: a setting is invalid, an address is taken, or model or engine is missing.
    """
    _check(settings)  # mistakes are reported before anything starts
    if settings.upstream.peers_ca_file:
        tls.client_context(settings.upstream.peers_ca_file)
    if settings.tls.tls_cert_file:
        tls.load(settings.tls.tls_cert_file, settings.tls.tls_key_file)
    if not settings.upstream.backend_api_key:
        key = f"gateway-{secrets.token_urlsafe(32)}"
        settings = replace(settings, upstream=replace(settings.upstream, backend_api_key=key))
    with early_stops() as is_stop_requested, BootLog(settings.logs) as boot_log:
        return App(
            settings,
            environ=environ,
            sources=sources,
            display=display,
            boot_log=boot_log,
            is_stop_requested=is_stop_requested,
            load_again=load_again or (lambda: (settings, sources)),
            owners=owners,
        ).run()


def _check(settings: Settings) -> None:
    """Check what needs neither a file nor a process.

    Raises:
        UserError: a setting is invalid.
    """
    extra_args(settings.engine)
    listen_flags(EngineAddress.of(settings.upstream))
    plan.ports(settings.listen, settings.upstream, settings.engine.replicas)


@contextlib.contextmanager
def early_stops() -> Iterator[Callable[[], bool]]:
    """Exit at SIGTERM and SIGINT, with cleanup, until the supervisor handles them.

    Yields whether one has arrived: Python discards its exception if it is raised in a callback
    during an import.
    """
    is_requested = False

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal is_requested
        is_requested = True
        sys.exit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: is_requested
    except UserError:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise


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
        load_again: reads the settings and their sources again.
        owners: whose prompts may be kept.
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
        self._supervisor: Supervisor | None = None
        self._preparation = Preparation(
            settings,
            environ=environ,
            sources=sources,
            download_meter=display.download_meter,
        )

    def run(self) -> int:
        settings = self._settings
        listener = listen(settings.listen.host, settings.listen.port)
        health_listener = listen(settings.listen.host, settings.listen.port_health, "PORT_HEALTH")
        health = HealthServer(health_listener, self._health_status)
        health.start()
        try:
            for number in range(plan.least_replicas(settings.engine.replicas)):
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
            listener.close()
            health.stop()

    def _prompt_cache(self) -> PromptCache | None:
        chosen = self._settings.prompts
        if self._owners is None or not chosen.prompt_cache:
            return None
        instance = self._settings.logs.instance_id
        folder = Folder(chosen.prompt_cache_dir, chosen.prompt_cache_size, instance)
        return PromptCache(folder, self._owners)

    async def _run(self, supervisor: Supervisor) -> int:
        settings = self._settings
        operations = Operations(
            settings, supervisor, lambda: self._preparation.model_name, self._started_at
        )
        port, handlers = settings.listen.port, operations.handlers()
        async with ControlSocket(settings.model.data_dir, port, handlers):
            return await supervisor.run()

    def _health_status(self) -> int:
        if self._settings.listen.health_mode == "live":
            return 200
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
        if names := plan.fixed_changes(self._settings, loaded):
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
        _check(settings)
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
            # Off the loop: it reads the keys file, whose disk may hang.
            threading.Thread(
                target=self._display.show_ready,
                args=(model, status.request_tokens),
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
