"""Reads every setting: flag over environment over env-file over configuration file over default.

All mistakes are reported together, and names one edit away from a setting's are warned about.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from llama_gguf.config.masking import MASK
from llama_gguf.config.schema import DEFAULT_KEEPALIVE
from llama_gguf.config.settings import SETTINGS, Settings, flag, variable
from llama_gguf.errors import UserError
from llama_gguf.values import Value

SOURCES: Final = ("flag", "environment", "env-file", "config-file", "default")
"""In the order of precedence."""


class FileValue(Value):
    """A value in the configuration file."""

    text: str
    """As in the environment."""
    where: str
    """The file, the line if it can be determined, and the key."""


class Files(Value):
    """The content of the files that settings are read from, next to the environment."""

    env_file: Mapping[str, str] = {}
    """By variable; others than settings are among them."""
    values: Mapping[str, FileValue] = {}
    """Of the configuration file, by the setting's name."""
    mistakes: tuple[str, ...] = ()
    """Found in the configuration file."""


NO_FILES: Final = Files()


class Loaded(Value):
    """The result of ``load``."""

    settings: Settings
    sources: Mapping[str, str]
    """The source of each value, one of ``SOURCES``."""
    warnings: tuple[str, ...]


def load(
    environ: Mapping[str, str], flags: Mapping[str, str] | None = None, files: Files = NO_FILES
) -> Loaded:
    """Read every setting.

    An empty variable counts as not set, since compose files and templates pass variables on
    even if they are empty; so does an empty value in a file. Quotes around a variable's whole value
    are removed: `docker run --env-file` and others keep those of the file, in which a shell would
    remove them.

    Of MODEL_NAME and MODEL_PATH, the one from the higher source is used; from the same source, it
    is MODEL_PATH.

    Args:
        environ: the environment, by variable.
        flags: the flags on the command line, by the setting's name.
        files: the content of the files.

    Raises:
        UserError: its message lists all invalid values.
    """
    loaded, complaint = load_usable(environ, flags, files)
    if complaint:
        raise UserError(complaint, exit_status=2)
    return loaded


def load_usable(
    environ: Mapping[str, str], flags: Mapping[str, str] | None = None, files: Files = NO_FILES
) -> tuple[Loaded, str]:
    """As ``load``, with the defaults for invalid values, and with the error message about them."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    mistakes = [f"  {text}" for text in files.mistakes]
    environ, warnings = _cleaned(environ)
    env_file, more_warnings = _cleaned(files.env_file)
    for name, setting in SETTINGS.items():
        in_file = files.values.get(name)
        for source, text, label in (
            ("flag", (flags or {}).get(name), flag(name)),
            ("environment", environ[variable(name)] or None, variable(name)),
            ("env-file", env_file[variable(name)] or None, variable(name)),
            ("config-file", (in_file and in_file.text) or None, in_file.where if in_file else ""),
        ):
            if text is None:
                continue
            try:
                values[name] = setting.parse(text)
                sources[name] = source
            except ValueError as expected:
                shown = MASK if setting.secret else ascii(re.sub(_LOGIN, f"//{MASK}@", text))
                mistakes.append(f"  {label}={shown} is invalid; must be {expected}")
            break
    if "max_request_body_size" not in values and "max_body_memory" in values:
        default = SETTINGS["max_request_body_size"].default
        values["max_request_body_size"] = min(default, values["max_body_memory"])
    is_below = SOURCES.index(sources["model_path"]) > SOURCES.index(sources["model_name"])
    if is_below and values.get("model_name") and "model_path" in values:
        del values["model_path"]
        sources["model_path"] = "default"
    settings = Settings.of(**values)
    mistakes += [f"  {text}" for text in contradictions(settings)]
    lines = ["These settings are invalid:", *mistakes, "See docs/settings.md."]
    complaint = "\n".join(lines) if mistakes else ""
    warnings += [w for w in more_warnings if w not in warnings]
    warnings += _near_misses({**environ, **env_file})
    return Loaded(settings, sources, tuple(warnings)), complaint


_LOGIN: Final = r"//[^/@,]*@"
"""In a URL."""


def _cleaned(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The settings in *environ* without what is no part of a value, and warnings about it."""
    cleaned = dict(environ)
    warnings: list[str] = []
    for name in map(variable, SETTINGS):
        text = environ.get(name, "").strip()
        cleaned[name] = _unquoted(text)
        if cleaned[name] != text:
            warnings.append(f"{name} is used without the quotes around its value")
        if " #" in text:
            warnings.append(
                f"{name} contains ' #': in files for `docker run --env-file`, a comment behind a "
                "value is a part of the value"
            )
    if "-" in cleaned["HOST"] and re.fullmatch(_TARGET, cleaned["HOST"]):
        warnings.append(
            f"HOST={cleaned['HOST']} is not used: it is the target of conda's compilers, and not "
            "an address; set one with --host"
        )
        cleaned["HOST"] = ""
    return cleaned, warnings


def _unquoted(text: str) -> str:
    while len(text) > 1 and text[0] in "\"'" and text.find(text[0], 1) == len(text) - 1:
        text = text[1:-1].strip()
    return text


# Activating an environment with compilers of conda sets it.
_TARGET: Final = r"\w+-(?:conda|conda_\w+|apple|pc|unknown)-[\w.-]+"


def contradictions(settings: Settings) -> Iterable[str]:
    """Pairs of settings that cannot both be meant, a sentence each."""
    tls, auth, limits = settings.tls, settings.auth, settings.limits
    if bool(tls.tls_cert_file) != bool(tls.tls_key_file):
        yield "TLS_CERT_FILE and TLS_KEY_FILE must be set together"
    if limits.max_request_body_size > limits.max_body_memory:
        yield (
            f"MAX_BODY_MEMORY={limits.max_body_memory} must be at least MAX_REQUEST_BODY_SIZE"
            f"={limits.max_request_body_size}: a larger body would never be accepted"
        )
    if not auth.auth_enabled and auth.admin_key_ids:
        yield "ADMIN_KEY_IDS needs AUTH_ENABLED=true: without it, requests have no key"
    if not auth.auth_enabled and settings.routes.metrics_auth_enabled:
        yield "METRICS_AUTH_ENABLED=true needs AUTH_ENABLED=true: without it, no key is checked"
    if settings.queue.max_concurrent_requests > limits.max_connections:
        yield (
            f"MAX_CONCURRENT_REQUESTS={settings.queue.max_concurrent_requests} must not exceed "
            f"MAX_CONNECTIONS={limits.max_connections}: a connection has one request at a time"
        )
    longest = settings.queue.max_queue_wait + settings.timeouts.request_timeout
    if settings.timeouts.sse_keepalive > max(longest, DEFAULT_KEEPALIVE):
        yield (
            f"SSE_KEEPALIVE={settings.timeouts.sse_keepalive:g} must not exceed MAX_QUEUE_WAIT + "
            f"REQUEST_TIMEOUT = {longest:g}: a silent stream ends before"
        )


_NOT_OURS: Final = frozenset({"LOGNAME"})  # login shells set it


def _near_misses(environ: Iterable[str]) -> Iterable[str]:
    """Warnings about variables that look like misspelt settings.

    Names under five letters are ignored: PORT is one edit from too many words.
    """
    ours = [variable(n) for n in SETTINGS]
    # One edit leaves either the first two letters as they are or the last two, of five or more.
    similar: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for our in ours:
        similar[our[:2], ""].append(our)
        similar["", our[-2:]].append(our)
    for name in sorted(set(environ).difference(ours, _NOT_OURS)):
        if len(name) < 5:
            continue
        for our in dict.fromkeys([*similar[name[:2], ""], *similar["", name[-2:]]]):
            if len(our) >= 5 and one_edit_apart(name, our):
                yield f"{name} is not a setting; did you mean {our}?"


def one_edit_apart(a: str, b: str) -> bool:
    """Whether adding, removing, changing or swapping one letter turns *a* into *b*."""
    if abs(len(a) - len(b)) > 1 or a == b:
        return False
    start = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    a, b = a[start:], b[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
