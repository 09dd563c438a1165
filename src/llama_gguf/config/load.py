"""Reads every setting: a flag overrides the environment, which overrides the default.

All mistakes are reported together, and names one edit away from a setting's are warned about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.config.masking import MASK
from llama_gguf.config.settings import SETTINGS, Settings, flag, variable
from llama_gguf.errors import UserError


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of ``load``."""

    settings: Settings
    sources: Mapping[str, str]
    """The source of each value: ``flag``, ``environment`` or ``default``."""
    warnings: tuple[str, ...]


def load(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Loaded:
    """Read every setting.

    An empty variable counts as not set, since compose files and templates pass variables on
    even if they are empty.

    Args:
        environ: the environment, by variable.
        flags: the flags on the command line, by the setting's name.

    Raises:
        UserError: its message lists all invalid values.
    """
    loaded, complaint = load_usable(environ, flags)
    if complaint:
        raise UserError(complaint, exit_status=2)
    return loaded


def load_usable(
    environ: Mapping[str, str], flags: Mapping[str, str] | None = None
) -> tuple[Loaded, str]:
    """As ``load``, with the defaults for invalid values, and with the error message about them."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    mistakes: list[str] = []
    for name, setting in SETTINGS.items():
        for source, text in (
            ("flag", (flags or {}).get(name)),
            ("environment", environ.get(variable(name), "").strip() or None),
        ):
            if text is None:
                continue
            try:
                values[name] = setting.parse(text)
                sources[name] = source
            except ValueError as wanted:
                label = flag(name) if source == "flag" else variable(name)
                shown = MASK if setting.secret else ascii(text)
                mistakes.append(f"  {label}={shown} is invalid; must be {wanted}")
            break
    if bool(values.get("tls_cert_file")) != bool(values.get("tls_key_file")):
        mistakes.append("  TLS_CERT_FILE and TLS_KEY_FILE must be set together")
    lines = ["These settings are invalid:", *mistakes, "See docs/settings.md."]
    complaint = "\n".join(lines) if mistakes else ""
    return Loaded(Settings.of(**values), sources, tuple(_near_misses(environ))), complaint


_NOT_OURS: Final = frozenset({"LOGNAME"})  # login shells set it


def _near_misses(environ: Iterable[str]) -> Iterable[str]:
    """Warnings about variables that look like misspelt settings.

    Names under five letters are ignored: PORT is one edit from too many words.
    """
    ours = [variable(n) for n in SETTINGS]
    for name in sorted(environ):
        if name in ours or name in _NOT_OURS or len(name) < 5:
            continue
        for our in ours:
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
