"""What `serve` would do: every setting and where it came from, model, engine, machine, ports, keys.

Exit status 0 when nothing stands in the way, else 1 with a list of what does.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from llama_gguf import keyfile
from llama_gguf.cli import plan
from llama_gguf.cli.context import Context
from llama_gguf.cli.serve import with_model
from llama_gguf.cli.terminal import print_table, say
from llama_gguf.core import settings as core_settings
from llama_gguf.core.launch import engine_address, extra_args
from llama_gguf.core.settings import Settings
from llama_gguf.engine import locate, machine
from llama_gguf.engine.model import size_text
from llama_gguf.errors import UserError
from llama_gguf.gateway import tls
from llama_gguf.gateway.server import listen

USAGE = "%(prog)s [MODEL] [--json] [--SETTING VALUE ...]"


PORTS: Final = ("port", "port_health", "port_backend")


@dataclass(frozen=True, slots=True)
class Result:
    subject: str
    text: str
    is_wrong: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model to serve")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace, context: Context) -> int:
    settings = with_model(context.settings, arguments.model)
    results = list(_results(settings, context))
    wrong = [r for r in results if r.is_wrong]
    sources = dict(context.sources)
    if arguments.model is not None:
        sources |= {"model_name": "command line", "model_path": "default"}
    rows = [
        (
            core_settings.variable(name),
            core_settings.masked(name, getattr(settings, name)),
            source,
        )
        for name, source in sources.items()
    ]
    if arguments.json:
        say(_as_json(rows, results))
    else:
        _print(rows, results, wrong)
    return 1 if wrong else 0


def _as_json(rows: list[tuple[str, str, str]], results: list[Result]) -> str:
    return json.dumps(
        {
            "settings": {name: {"value": v, "source": s} for name, v, s in rows},
            "checks": [
                {"subject": r.subject, "ok": not r.is_wrong, "text": r.text} for r in results
            ],
            "ok": not any(r.is_wrong for r in results),
        },
        indent=1,
    )


def _print(rows: list[tuple[str, str, str]], results: list[Result], wrong: list[Result]) -> None:
    print_table(("SETTING", "VALUE", "FROM"), rows)
    say("")
    print_table(("CHECK", "", "FOUND"), [_row(r) for r in results])
    if wrong:
        say(f"\n{len(wrong)} to put right before `serve` can work:")
        for result in wrong:
            say(f"- {result.subject}: {result.text}")
    else:
        say("\nNothing stands in the way of `llama-gguf serve`.")


def _row(result: Result) -> tuple[str, str, str]:
    return (result.subject, "wrong" if result.is_wrong else "ok", result.text.split("\n")[0])


def _results(settings: Settings, context: Context) -> Iterator[Result]:
    environ = context.environ
    path = environ.get("PATH", os.defpath)
    here = machine.look(path)
    free = machine.free_disk(settings.data_dir)
    yield Result("machine", f"{here.system}, {here.cpus} CPUs")
    yield Result("gpu", here.gpu_text)
    memory = here.memory_available
    yield Result("memory", "unknown" if memory is None else f"{size_text(memory)} available")
    yield Result("disk", "unknown" if free is None else f"{size_text(free)} free")
    yield _try("extra args", lambda: " ".join(extra_args(settings)) or "none")
    yield _try("engine address", lambda: " ".join(engine_address(settings)))
    yield _try("engine", lambda: _engine(settings, context, path))
    yield _try("model", lambda: _model(settings))
    for name in PORTS[:-1] if settings.backend_socket else PORTS:
        yield _try(core_settings.variable(name), lambda name=name: _port(settings, name))  # type: ignore[misc]
    yield _try("TLS", lambda: _certificate(settings))
    yield _keys(settings)


def _try(subject: str, check: Callable[[], str]) -> Result:
    try:
        return Result(subject, check())
    except UserError as error:
        return Result(subject, str(error), is_wrong=True)


def _engine(settings: Settings, context: Context, path: str) -> str:
    engine = locate.locate(settings.llama_server, path, environ=context.environ)
    version = locate.version(engine, context.environ)
    if version is None:
        raise UserError(f"{engine.path} does not run: try `{engine.path} --version`.")
    return f"{engine.path} ({engine.source}), version {version}"


def _model(settings: Settings) -> str:
    if plan.must_be_fetched(settings):
        return f"{settings.model_name} will be fetched into {settings.models_dir}"
    return plan.model_text(plan.find_model(settings))


def _port(settings: Settings, name: str) -> str:
    host = settings.backend_host if name == "port_backend" else settings.host
    port: int = getattr(settings, name)
    if [getattr(settings, other) for other in PORTS].count(port) > 1:
        raise UserError(
            f"{port} is given to two of {', '.join(map(core_settings.variable, PORTS))}."
        )
    listen(host, port, core_settings.variable(name)).close()
    return f"{host}:{port} is free"


def _certificate(settings: Settings) -> str:
    if not settings.tls_cert_file:
        return "off: PORT speaks plain HTTP"
    certificate = tls.load(settings.tls_cert_file, settings.tls_key_file)
    if certificate.complaint:
        raise UserError(certificate.complaint)
    return certificate.text


def _keys(settings: Settings) -> Result:
    if not settings.auth_enabled:
        return Result("keys", "AUTH_ENABLED is false: whoever reaches the port may use the model")
    path = settings.auth_keys_file
    try:
        ring = plan.keys_in(path)
    except UserError as error:
        return Result("keys", str(error), is_wrong=True)
    if not len(ring):
        text = f"no keys in {path}: make one with `llama-gguf keys generate --file {path}`"
        return Result("keys", text, is_wrong=True)
    notes = [f"line {p.line}: {p.reason}" for p in ring.problems]
    exposed = keyfile.warn_if_exposed(path)
    return Result(
        "keys", "; ".join([f"{len(ring)} in {path}", *notes, *([exposed] if exposed else [])])
    )
