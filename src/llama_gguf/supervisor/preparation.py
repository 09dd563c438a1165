"""What is determined before llama-server can start: its program, the model, the command line.

What needs no download and no process is found by ``check``, before anything is started; the rest
by ``prepare``, which may take long.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llama_gguf import __version__, events
from llama_gguf.config import settings as settings_module
from llama_gguf.config.masking import mask_urls
from llama_gguf.config.parsers import as_text
from llama_gguf.config.platform import data_dir_note, platform_of
from llama_gguf.config.schema import EngineSettings
from llama_gguf.config.settings import Settings
from llama_gguf.engines import locate, machine
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import (
    engine_argv,
    engine_environment,
    extra_args,
    listen_flags,
)
from llama_gguf.engines.devices import Device
from llama_gguf.events import EventLog
from llama_gguf.files.sizes import size_text
from llama_gguf.form import FORM
from llama_gguf.models.engine_options import options
from llama_gguf.models.model_file import Model
from llama_gguf.models.progress import MeterFactory
from llama_gguf.net.threads import run_detached
from llama_gguf.supervisor import division, plan, shares
from llama_gguf.supervisor.fetch import fetch
from llama_gguf.supervisor.launch import (
    HasRoom,
    Launch,
    ListDevices,
    PromptSource,
    no_devices,
)
from llama_gguf.supervisor.shares import Share

_log: Final = EventLog(__name__)

LIST_DEVICES_MAX_SECONDS: Final = 180.0
"""Above the 127 s for which Linux tries to connect to a peer that does not respond."""


class Preparation:
    """The preparation of one ``serve``.

    Args:
        settings: with folders and BACKEND_API_KEY filled in.
        environ: our own environment.
        sources: the source of each setting, for the log.
        download_meter: shows the progress of a download that needs no child.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        sources: Mapping[str, str],
        download_meter: MeterFactory,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._sources = sources
        self._download_meter = download_meter
        self._engine: locate.Engine
        self._model: Model | None = None

    @property
    def model_name(self) -> str:
        """The name that clients use; empty until the model is found."""
        return plan.alias_of(self._model) if self._model else ""

    def check(self) -> None:
        """Find llama-server, and the model if it is present.

        Raises:
            UserError: one of them is missing or cannot be used.
        """
        if not plan.must_be_fetched(self._settings.model):
            self._model = plan.find_model(self._settings.model)
        self._engine = locate.locate(
            self._settings.engine.llama_server,
            self._environ.get("PATH", os.defpath),
            environ=self._environ,
        )

    async def prepare(self, on_progress: Callable[[str, float | None], None]) -> list[Launch]:
        """Fetch the model if necessary, and log what is served; slow, so off the event loop.

        Returns:
            How each replica is started.

        Raises:
            UserError: the model cannot be fetched, or the GPUs cannot be divided.
        """
        if self._model is None:
            await fetch(self._settings.model, self._environ, on_progress)
        return await run_detached(self._launches)

    def _launches(self) -> list[Launch]:
        settings, environ = self._settings, self._environ
        if self._model is None:  # the fetch child is done, so this only finds the file
            self._model = plan.fetch_model(settings.model, environ, self._download_meter)
        model = self._model
        version = locate.version(self._engine, environ) or "unknown"
        engine, divided = division.divided(settings.engine, environ, model.facts)
        here = machine.look(environ.get("PATH", os.defpath))
        child_environ, kept_back = engine_environment(
            environ,
            api_key=settings.upstream.backend_api_key,
            changes=self._engine.environment_changes,
        )
        parts = self._shares(engine, child_environ, here)
        engine = shares.with_thread_share(engine, environ, here, len(parts))
        self._log_boot(model, version, division.text(engine, divided), here, _replicas_text(parts))
        if kept_back:
            _log.info(
                "environment_kept_back",
                "Variables not passed to llama-server: {variables}",
                variables=kept_back,
            )
        argv = engine_argv(
            self._engine.path, engine, model_path=model.path, alias=plan.alias_of(model)
        )
        prompts = self._prompt_source(engine, argv, child_environ, version)
        if prompts is not None:
            from llama_gguf.supervisor import prompt_source  # noqa: PLC0415

            argv += prompt_source.save_flags(settings.prompts.prompt_cache_dir, extra_args(engine))
        facts = plan.facts_of(model, context=divided.request_tokens, engine_version=version)
        launches = [
            Launch(
                [*argv, *part.flags],
                {**child_environ, **part.environ},
                model_path=model.path,
                model_bytes=model.bytes,
                facts=facts,
                sizes=_sizes(settings.engine),
                list_devices=self._device_list(engine, part, child_environ),
                has_room=self._room(engine, part, child_environ),
                prompts=prompts,
                devices=part.text,
            )
            for part in parts
        ]
        for number, launch in enumerate(launches):
            address = EngineAddress.of(settings.upstream, number)
            command = mask_urls(shlex.join([*launch.argv, *listen_flags(address)]))
            before = events.replica.set(str(number) if len(launches) > 1 else "")
            _log.info("engine_command", "Starting llama-server: {command}", command=command)
            events.replica.reset(before)
        return launches

    def _prompt_source(
        self,
        engine: EngineSettings,
        argv: Sequence[str],
        environ: Mapping[str, str],
        version: str,
    ) -> PromptSource | None:
        """What saved prompts depend on; None if there are none."""
        chosen = self._settings.prompts
        if not chosen.prompt_cache:
            return None
        from llama_gguf.prompt_cache.folder import Folder  # noqa: PLC0415
        from llama_gguf.supervisor import prompt_source  # noqa: PLC0415

        assert self._model is not None
        words = extra_args(engine)
        found = options(engine, words, environ)
        reason = prompt_source.obstacle(found, words)
        if not reason:
            try:
                Folder.of(chosen).open()
            except OSError as error:
                reason = f"{chosen.prompt_cache_dir}: {error.strerror or error}"
        if reason:
            _log.warning(
                "prompt_cache_off",
                "PROMPT_CACHE is on, but no prompts are saved: {reason}",
                reason=reason,
            )
            return None
        return prompt_source.source(self._model.parts, argv, environ, version=version, chosen=found)

    def _shares(
        self, engine: EngineSettings, environ: Mapping[str, str], here: machine.Machine
    ) -> tuple[Share, ...]:
        """What each replica has of the GPUs.

        Raises:
            UserError: they cannot be divided.
        """
        assert self._model is not None
        if engine.replicas == 1:
            return (Share(),)
        chosen = options(engine, extra_args(engine), environ)
        devices = locate.devices_of(self._engine, environ, timeout=LIST_DEVICES_MAX_SECONDS)
        if devices is None and here.gpus and chosen.ngl:
            _log.warning(
                "devices_unknown",
                "llama-server does not list its GPUs, so they are not divided between replicas",
            )
        number = shares.count(engine.replicas, self._model.facts, chosen, devices)
        return shares.shares(number, chosen, environ, devices)

    def _device_list(
        self, engine: EngineSettings, part: Share, environ: Mapping[str, str]
    ) -> ListDevices:
        chosen = options(engine, [*extra_args(engine), *part.flags], environ)
        if chosen.devices is not None:  # llama-server does not start without one of these
            return no_devices
        found, changed = self._engine, {**environ, **part.environ}

        def list_devices() -> Sequence[Device] | None:
            rpc: Sequence[str] = ()
            if chosen.rpc:
                from llama_gguf.engines import rpc_servers  # noqa: PLC0415

                rpc = rpc_servers.responding(chosen.rpc)
            return locate.devices_of(found, changed, rpc=rpc, timeout=LIST_DEVICES_MAX_SECONDS)

        return lambda: run_detached(list_devices)

    def _room(self, engine: EngineSettings, part: Share, environ: Mapping[str, str]) -> HasRoom:
        assert self._model is not None
        found, facts, changed = self._engine, self._model.facts, {**environ, **part.environ}
        chosen = options(engine, [*extra_args(engine), *part.flags], environ)

        def look(has_same_file: bool) -> bool:
            if chosen.rpc:  # the engine that runs uses the servers, and each serves one
                return False
            from llama_gguf.supervisor import room  # noqa: PLC0415  # of another engine

            devices: Sequence[Device] | None = locate.devices_of(found, changed)
            here = machine.look(changed.get("PATH", os.defpath))
            if devices is None and not here.gpus:
                devices = ()
            return room.has_room(
                facts,
                chosen,
                devices=devices,
                memory_available=here.memory_available,
                has_same_file=has_same_file,
            )

        return lambda has_same_file: run_detached(lambda: look(has_same_file))

    def _log_boot(
        self, model: Model, version: str, context: str, here: machine.Machine, replicas: str
    ) -> None:
        data_dir = self._settings.model.data_dir
        disk = machine.free_disk(data_dir)
        note = data_dir_note(self._settings, self._sources.get("data_dir", ""))
        rows = {
            "version": f"llama-gguf {__version__} ({FORM}), {here.system}",
            "platform": f"{platform_of(data_dir)}; DATA_DIR={data_dir}{note and f': {note}'}",
            "engine": f"{self._engine.path} ({self._engine.source}), version {version}",
            "model": plan.model_text(model),
            "context": context,
            "gpu": here.gpu_text,
            "cpus": here.cpu_text,
            "memory": f"{_size(here.memory_available)} of {_size(here.memory_total)} available",
            "disk": f"{_size(disk)} free",
            "settings": self._chosen_settings() or "all at defaults",
        }
        if replicas:
            rows["replicas"] = replicas
        for label, text in rows.items():
            _log.info("boot_fact", "{name:<9} {value}", name=label, value=text)

    def _chosen_settings(self) -> str:
        return " ".join(
            f"{settings_module.variable(name)}="
            f"{settings_module.masked(name, self._settings.value(name))}"
            for name, source in self._sources.items()
            if source != "default"
        )


def _replicas_text(parts: Sequence[Share]) -> str:
    """Such as "2: 0 on CUDA0; 1 on CUDA1"; empty for one."""
    if len(parts) == 1:
        return ""
    homes = [f"{number} on {part.text}" for number, part in enumerate(parts) if part.text]
    return f"{len(parts)}: {'; '.join(homes)}" if homes else str(len(parts))


def _sizes(settings: EngineSettings) -> str:
    ctx, ngl = as_text(settings.ctx), as_text(settings.ngl)
    return f"CTX={ctx}, PARALLEL={settings.parallel}, NGL={ngl}"


def _size(size: int | None) -> str:
    return "unknown" if size is None else size_text(size)
