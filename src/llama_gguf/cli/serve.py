"""Serve a model: llama-server, the gateway and the health server, supervised.

MODEL is a path, the name of a file in MODELS_DIR, or a name that `pull` accepts,
which is fetched if it is not present. Clients connect to HOST:PORT with an API key
from AUTH_KEYS_FILE; platforms poll HOST:PORT_HEALTH. SIGTERM (or Ctrl-C) drains:
running requests may finish within DRAIN_TIMEOUT. SIGHUP reloads the keys and the
TLS certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import Final, NoReturn

from llama_gguf import __version__
from llama_gguf.access import key_file
from llama_gguf.access.keys import KeyRing
from llama_gguf.cli import logs, plan
from llama_gguf.cli.context import Context, with_model
from llama_gguf.cli.fetch import fetch
from llama_gguf.cli.terminal import LoadMeter, download_meter, say
from llama_gguf.config import settings as settings_module
from llama_gguf.config.masking import MASK, mask_urls
from llama_gguf.config.parsers import as_text
from llama_gguf.config.platform import platform_of
from llama_gguf.config.settings import Settings
from llama_gguf.engines import locate, machine
from llama_gguf.engines.command import (
    engine_address,
    engine_argv,
    engine_environment,
    extra_args,
)
from llama_gguf.engines.status import HEALTH_STATUS, EngineState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.models.model_file import Model, size_text
from llama_gguf.net import tls
from llama_gguf.net.listener import listen
from llama_gguf.net.threads import run_detached
from llama_gguf.supervisor import reaper
from llama_gguf.supervisor.boot_log import BootLog
from llama_gguf.supervisor.health_server import HealthServer
from llama_gguf.supervisor.launch import Launch, check_address
from llama_gguf.supervisor.supervisor import Supervisor

USAGE = "%(prog)s [MODEL] [options] [--SETTING VALUE ...]"

_log: Final = EventLog(__name__)

DEBUG_SHELL_SECONDS: Final = 300
_SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|_PWD", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="model to serve")
    parser.add_argument(
        "--create-key",
        action="store_true",
        help="create an API key if AUTH_KEYS_FILE has none, and show it once",
    )


def run(arguments: argparse.Namespace, context: Context) -> int:
    settings = with_model(context.settings, arguments.model)
    logs.configure(settings.logs.log_format)
    if settings.process.debug_shell:
        return _hold(context.environ)
    extra_args(settings.engine)  # mistakes in these are reported before anything starts
    engine_address(settings.upstream)
    plan.ports(settings.listen, settings.upstream)
    if settings.tls.tls_cert_file:
        tls.load(settings.tls.tls_cert_file, settings.tls.tls_key_file)
    if not settings.upstream.backend_api_key:
        key = f"gateway-{secrets.token_urlsafe(32)}"
        settings = replace(settings, upstream=replace(settings.upstream, backend_api_key=key))
    with _early_stops() as is_stop_requested, BootLog(settings.logs) as boot_log:
        return _Serving(
            settings,
            context,
            creates_key=arguments.create_key,
            on_reopen=boot_log.reopen,
            is_stop_requested=is_stop_requested,
        ).run()


@contextlib.contextmanager
def _early_stops() -> Iterator[Callable[[], bool]]:
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


class _Serving:
    def __init__(
        self,
        settings: Settings,
        context: Context,
        *,
        creates_key: bool,
        on_reopen: Callable[[], None],
        is_stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._is_stop_requested = is_stop_requested
        self._on_reopen = on_reopen
        self._meter = LoadMeter()
        self._has_shown_ready = False
        self._context = context
        self._creates_key = creates_key
        self._new_key = ""
        self._model: Model | None = None
        self._supervisor: Supervisor | None = None

    def run(self) -> int:
        settings = self._settings
        listener = listen(settings.listen.host, settings.listen.port)
        health_listener = listen(settings.listen.host, settings.listen.port_health, "PORT_HEALTH")
        health = HealthServer(health_listener, self._health_status)
        health.start()
        try:
            check_address(settings.upstream)
            # All that can be checked now is checked before any process is started.
            if not plan.must_be_fetched(settings.model):
                self._model = plan.find_model(settings.model)
            self._engine = self._locate()
            if self._creates_key and settings.auth.auth_enabled:
                self._create_key()
            with _no_children_left(), asyncio.Runner() as runner:
                self._supervisor = Supervisor(
                    settings,
                    environ=self._gateway_environment(),
                    listener=listener,
                    prepare=self._prepare,
                    on_status=self._on_status,
                    on_reopen=self._on_reopen,
                )
                if self._is_stop_requested():
                    return 0
                return runner.run(self._supervisor.run())
        finally:
            self._meter.hide()
            listener.close()
            health.stop()

    def _health_status(self) -> int:
        if self._settings.listen.health_mode == "live":
            return 200
        return 204 if self._supervisor is None else HEALTH_STATUS[self._supervisor.health_state]

    def _locate(self) -> locate.Engine:
        environ = self._context.environ
        return locate.locate(
            self._settings.engine.llama_server, environ.get("PATH", os.defpath), environ=environ
        )

    def _gateway_environment(self) -> dict[str, str]:
        """Our environment with explicit settings, since the gateway does not get our flags."""
        settings = self._settings
        spelt_out = {
            settings_module.variable(name): as_text(settings.value(name))
            for name in settings_module.USED_BY["gateway"]
        }
        return {**self._context.environ, **spelt_out}

    def _create_key(self) -> None:
        from llama_gguf.cli.keys import create_key

        path = self._settings.auth.auth_keys_file
        if not len(plan.keys_in(path)):
            self._new_key = create_key(path, name="default")
            say(f"A new API key, shown only once and stored in {path}:\n\n    {self._new_key}\n")

    # Until the model is served --------------------------------------------------------------------

    async def _prepare(self) -> Launch:
        """Fetch the model if necessary, and log what is served; slow, so off the event loop."""
        if self._model is None:
            await fetch(self._settings.model, self._context.environ, self._show_progress)
        return await run_detached(self._prepare_slowly)

    def _prepare_slowly(self) -> Launch:
        settings, environ = self._settings, self._context.environ
        if self._model is None:  # the fetch child is done, so this only finds the file
            self._model = plan.fetch_model(settings.model, environ, download_meter)
        version = locate.version(self._engine, environ) or "unknown"
        self._log_boot(self._model, version)
        alias = plan.alias_of(self._model)
        argv = engine_argv(
            self._engine.path,
            settings.engine,
            upstream=settings.upstream,
            model_path=self._model.path,
            alias=alias,
        )
        child_environ, kept_back = engine_environment(
            environ,
            api_key=settings.upstream.backend_api_key,
            changes=self._engine.environment_changes,
        )
        if kept_back:
            _log.info(
                "environment_kept_back",
                "Variables not passed to llama-server: {variables}",
                variables=kept_back,
            )
        _log.info(
            "engine_command",
            "Starting llama-server: {command}",
            command=mask_urls(shlex.join(argv)),
        )
        facts = plan.facts_of(self._model, ctx=settings.engine.ctx, engine_version=version)
        return Launch(argv, child_environ, self._model.bytes, facts)

    def _log_boot(self, model: Model, version: str) -> None:
        data_dir, environ = self._settings.model.data_dir, self._context.environ
        here = machine.look(environ.get("PATH", os.defpath))
        disk = machine.free_disk(data_dir)
        rows = {
            "version": f"llama-gguf {__version__}, {here.system}",
            "platform": f"{platform_of(data_dir)}; DATA_DIR={data_dir}",
            "engine": f"{self._engine.path} ({self._engine.source}), version {version}",
            "model": plan.model_text(model),
            "gpu": here.gpu_text,
            "cpus": str(here.cpus),
            "memory": f"{_size(here.memory_available)} of {_size(here.memory_total)} available",
            "disk": f"{_size(disk)} free",
            "settings": self._chosen_settings() or "all at defaults",
        }
        for label, text in rows.items():
            _log.info("boot_fact", "{name:<9} {value}", name=label, value=text)

    def _chosen_settings(self) -> str:
        return " ".join(
            f"{settings_module.variable(name)}="
            f"{settings_module.masked(name, self._settings.value(name))}"
            for name, source in self._context.sources.items()
            if source != "default"
        )

    def _on_status(self, status: EngineStatus) -> None:
        """Show people the state: a bar while the model loads, then the first commands to try."""
        assert self._supervisor is not None
        if status.state is EngineState.LOADING:
            self._meter.show(f"loading {self._model_name()}", status.progress)
            return
        self._meter.hide()
        is_first = status.state is EngineState.READY and not self._has_shown_ready
        if is_first and not self._supervisor.is_leaving:
            self._has_shown_ready = True
            # Off the loop: it reads the keys file, whose disk may hang.
            threading.Thread(target=self._show_ready, name="ready", daemon=True).start()

    def _show_progress(self, detail: str, share: float | None) -> None:
        if self._supervisor is not None:
            self._supervisor.engine.report(detail, share)

    def _show_ready(self) -> None:
        # The reader of our output may have exited (`serve | head`); the model is still served.
        with contextlib.suppress(BrokenPipeError, UserError):
            say(ready_text(self._settings, model=self._model_name(), new_key=self._new_key))

    def _model_name(self) -> str:
        return plan.alias_of(self._model) if self._model else ""


def _size(size: int | None) -> str:
    return "unknown" if size is None else size_text(size)


_TLS_ADVICE: Final = """
# The certificate must match the host in the URL. If its issuer is not trusted yet:
# curl --cacert FILE, and export SSL_CERT_FILE=FILE for Python.
"""


def ready_text(settings: Settings, *, model: str, new_key: str) -> str:
    """The first commands to try, ready to paste.

    Args:
        settings: the address on which it listens.
        model: the name that clients use.
        new_key: a key that was just created; without one, the commands read one from the file.
    """
    host, port = settings.listen.host, settings.listen.port
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    url = f"{settings.tls.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    key = new_key or (
        _key_command(settings.auth.auth_keys_file) if settings.auth.auth_enabled else "none"
    )
    export = f'export API_KEY="{key}"\n' if key.startswith("$") else ""
    imports = "import os\n" if export else ""
    python_key = 'os.environ["API_KEY"]' if export else json.dumps(key)
    question = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
    # Not indented, since the end of a pasted here-document must begin its line.
    return f"""
Ready: {url}/v1 serves {model}
{_TLS_ADVICE if settings.tls.tls_cert_file else ""}
# Try it with curl:

curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d {shlex.quote(json.dumps(question))}

# Or with OpenAI's Python SDK (pip install openai):

{export}python3 - <<'END'
{imports}from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key={python_key})
question = {json.dumps(question)}
for chunk in client.chat.completions.create(**question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
END

# Stop the server with Ctrl-C.
"""


def _key_command(path: str) -> str:
    """A shell expression that reads a key from the file, so that no key is shown again.

    It is likely to be pasted into a terminal in another directory.
    """
    now = datetime.now(UTC).timestamp()
    try:
        lines = key_file.read(path).split("\n")
    except UserError:  # the gateway has reported the error
        lines = []
    for number, line in enumerate(lines, start=1):
        for key in KeyRing.parse(line).keys:
            if not key.hashed and not key.is_expired(now):
                file = shlex.quote(os.path.abspath(path))
                return f"$(sed -n {number}p {file} | cut -d: -f2 | tr -d '[:space:]')"
    return "YOUR_API_KEY"


def _hold(environ: Mapping[str, str]) -> int:
    """DEBUG_SHELL: show the environment without secrets, keep the container running, exit."""
    for name in sorted(environ):
        hidden = _SECRET_NAME.search(name)
        say(f"{name}={MASK if hidden else mask_urls(environ[name])}")
    say(f"DEBUG_SHELL: waiting for {DEBUG_SHELL_SECONDS} s.")
    time.sleep(DEBUG_SHELL_SECONDS)
    return 0
