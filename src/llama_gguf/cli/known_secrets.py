"""Every secret that `diagnose` can find, so that its bundle contains none of them.

A source that cannot be read is reported; of its secrets only those that look like one are masked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from llama_gguf.access.keys import stored_keys
from llama_gguf.cli.context import Context
from llama_gguf.cli.guard import within
from llama_gguf.config import masking
from llama_gguf.config import settings as settings_module
from llama_gguf.engines import processes

_SETTINGS: Final = {settings_module.variable(name): name for name in settings_module.SETTINGS}
_FOLDERS: Final = frozenset({"PWD", "OLDPWD"})
LOOK_SECONDS: Final = 30.0


def gather(context: Context) -> tuple[set[str], list[str]]:
    """The secrets, and the sources that could not be searched."""
    found: set[str] = set()
    troubles: list[str] = []
    for what, look in (
        ("the environment", lambda: _of_environment(context)),
        ("the keys file", lambda: _of_keys_file(context.settings.auth.auth_keys_file)),
        ("the stored login of huggingface_hub", lambda: _of_hub_login(context)),
        ("the processes", _of_processes),
    ):
        _add(found, troubles, what, look)
    return found, troubles


def _add(
    found: set[str], troubles: list[str], what: str, look: Callable[[], Iterable[str]]
) -> None:
    # A file system that hangs must not prevent the bundle.
    secrets, trouble = within(LOOK_SECONDS, lambda: list(look()))
    found.update(secrets or [])
    if trouble:
        troubles.append(f"{what}: {trouble}")


def is_harmless(name: str, value: str) -> bool:
    """Whether a variable named like a secret contains none: one of our settings, or a path."""
    ours = _SETTINGS.get(name)
    if ours is not None:
        return not settings_module.SETTINGS[ours].secret
    return name in _FOLDERS or (value.startswith("/") and os.path.exists(value))


def is_secret(name: str, value: str) -> bool:
    """Whether the variable *name* is likely to contain a secret."""
    return masking.names_secret(name) and not is_harmless(name, value)


def _of_environment(context: Context) -> Iterator[str]:
    yield context.settings.upstream.backend_api_key
    yield from masking.secrets_of({"": context.settings.shared.shared_limits}, is_harmless)
    yield from masking.secrets_of(context.environ, is_harmless)
    # Values given as flags are not in the environment.
    for text in (context.settings.engine.extra_args, context.settings.model.model_name):
        yield from masking.secrets_of({"": text}, is_harmless)


def _of_keys_file(path: str) -> Iterator[str]:
    """Every key in the file, and all possible keys in comments and invalid lines."""
    lines = _text(path).splitlines()
    for line in lines:
        words = [word for word in re.split(r"[:\s#,;=]+", line) if len(word) >= 8]
        if stored := stored_keys(line):
            words = [secret for _, secret in stored]
        elif line.lstrip().startswith("#"):
            words = [word for word in words if re.fullmatch(r"[\w$-]{16,}", word)]
        yield from words


def _of_hub_login(context: Context) -> Iterator[str]:
    environ = context.environ
    home = environ.get("HF_HOME") or os.path.join(
        environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", "/"), ".cache"),
        "huggingface",
    )
    yield _text(environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")).strip()


def _text(path: str) -> str:
    """The content of a file; empty if it does not exist."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _of_processes() -> Iterator[str]:
    """From all arguments, and from our processes' environments, which have the engine's key."""
    running = processes.look()
    for process in running.values():
        yield from masking.secrets_of({"": " ".join(process.argv)}, is_harmless)
    for _, process in processes.family(running):
        yield from masking.secrets_of(processes.environ_of(process.pid), is_harmless)
