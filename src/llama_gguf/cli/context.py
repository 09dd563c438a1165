"""The argument of every command: the settings and the environment, read once by ``main``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llama_gguf.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    """Folders and instance name have their effective values."""
    sources: Mapping[str, str]
    """The source of each setting: ``flag``, ``environment`` or ``default``."""
    environ: Mapping[str, str]
    complaint: str = ""
    """Errors in the settings; only for commands that work without valid settings."""
    load_again: Callable[[], Context] | None = None
    """Reads the settings again, from the same command line and environment. Raises UserError."""


def with_model(settings: Settings, model: str | None) -> Settings:
    """*settings* with MODEL from the command line, which takes precedence over both variables."""
    if model is None:
        return settings
    return replace(settings, model=replace(settings.model, model_name=model, model_path=""))
