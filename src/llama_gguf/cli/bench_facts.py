"""Facts about the environment of a `bench` run: keys, machine, versions, model."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final
from urllib.parse import urlsplit

from llama_gguf import __version__
from llama_gguf.access import key_file, keys
from llama_gguf.cli.context import Context
from llama_gguf.config.settings import Settings
from llama_gguf.engines import machine
from llama_gguf.errors import UserError
from llama_gguf.models.model_file import read_model
from llama_gguf.wall_clock import iso, wall_now
from llama_gguf_bench.connection import Target
from llama_gguf_bench.options import Options
from llama_gguf_bench.results import Circumstances
from llama_gguf_bench.server import Server

KEY_VARIABLES: Final = ("LLAMA_API_KEY", "OPENAI_API_KEY")
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def endpoint_key(url: str, context: Context) -> str:
    """The key for *url*: from the environment, or for this machine from the keys file.

    A key from the keys file is never sent to another machine.
    """
    for variable in KEY_VARIABLES:
        if key := context.environ.get(variable, "").strip():
            return _sendable(key, variable)
    if not is_here(url, context.settings):
        return ""
    try:
        text = key_file.read(context.settings.auth.auth_keys_file)
    except UserError:
        return ""
    return key_in(text, now=wall_now())


def _sendable(key: str, variable: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{variable} contains characters that a key cannot have.", 2)
    return key


def key_in(text: str, *, now: float) -> str:
    """The key with the highest rate limit in a keys file; empty if none is in plain text."""
    candidates = [(key.rate_limit or 0, secret) for key, secret in keys.chat_keys(text, now)]
    return max(candidates, default=(0, ""), key=lambda c: c[0])[1]


def own_url(settings: Settings) -> str:
    """The URL of the gateway with these *settings*, from this machine."""
    host = _ANY_ADDRESS.get(settings.listen.host, settings.listen.host)
    shown = f"[{host}]" if ":" in host else host
    return f"{settings.tls.scheme}://{shown}:{settings.listen.port}"


def is_here(url: str, settings: Settings) -> bool:
    """Whether *url* is an endpoint of this machine."""
    if url.startswith("unix:") or url == own_url(settings):
        return True
    try:
        return urlsplit(url).hostname in _LOOPBACK
    except ValueError:
        return False


def raise_open_files() -> None:
    """Raise the limit on open files, and so on connections, to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# To repeat a run ----------------------------------------------------------------------------------


def circumstances(
    target: Target,
    backend_url: str,
    options: Options,
    server: Server,
    context: Context,
    *,
    command: Sequence[str],
) -> Circumstances:
    """Everything that the numbers depend on, as far as this machine can determine it."""
    return Circumstances(
        url=target.url,
        backend_url=backend_url,
        date=iso(wall_now()),
        command=("llama-gguf", *command),
        versions=_versions(),
        machine=_machine(context, is_servers=is_here(target.url, context.settings)),
        server=server.as_json(),
        model=_model(server, is_servers=is_here(target.url, context.settings)),
        settings=options.as_json(),
    )


def _versions() -> dict[str, str]:
    found = {"llama-gguf": __version__, "python": platform.python_version()}
    for package in ("uvloop", "httptools"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine(context: Context, *, is_servers: bool) -> dict[str, Any]:
    seen = machine.look(context.environ.get("PATH", os.defpath))
    return {
        "whose": "load generator and server" if is_servers else "load generator",
        "system": seen.system,
        "cpu": cpu_name(),
        "cpus": seen.cpus,
        "memory_bytes": seen.memory_total,
        "gpu": seen.gpu_text,
    }


def cpu_name(path: str = "/proc/cpuinfo") -> str:
    """The CPU's name from the kernel; empty if it is unknown."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _model(server: Server, *, is_servers: bool) -> Mapping[str, Any]:
    """Facts from the header of the model file if it is on this machine, else from the server."""
    if is_servers and server.model_path:
        try:
            facts = read_model(server.model_path).facts
        except UserError:
            return server.model
        wanted = ("name", "architecture", "parameters", "quantization", "context_length")
        found = vars(facts)
        return {name: found[name] for name in (*wanted, "file_bytes")}
    return server.model


def heading(facts: Circumstances) -> list[str]:
    """Two lines: what was measured, and in which environment."""
    server, settings = facts.server, facts.settings
    model = facts.model.get("name") or ", ".join(server["models"]) or "a model"
    parts = [
        f"{facts.url} against {facts.backend_url}" if facts.backend_url else facts.url,
        str(model),
        str(facts.model.get("quantization") or ""),
        f"llama.cpp {server['engine']}" if server["engine"] else "",
        f"gateway {server['gateway']}" if server["gateway"] else "",
        f"{server['slots']} slots" if server["slots"] else "",
    ]
    prompt = settings["prompts_file"] or f"{_numbers(settings['prompt_tokens'])} prompt tokens"
    if settings["shared_prefix"]:
        prompt += f" after {settings['shared_prefix']} shared ones"
    details = [
        prompt,
        f"{settings['output_tokens']} output tokens",
        "streamed" if settings["streamed"] else "not streamed",
        f"{facts.machine['cpu']}, {facts.machine['cpus']} CPUs, GPU {facts.machine['gpu']}",
    ]
    return [" · ".join(filter(None, parts)), " · ".join(filter(None, details))]


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
