"""The argument of every command: the settings and the environment, read once by ``main``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llama_gguf.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    """With folders and instance name filled in."""
    sources: Mapping[str, str]
    """Where each setting came from: ``flag``, ``environment`` or ``default``."""
    environ: Mapping[str, str]
    complaint: str = ""
    """What is wrong with settings; only for a command that can do without them."""


def with_model(settings: Settings, model: str | None) -> Settings:
    """*settings* with the MODEL of the command line, which beats both variables."""
    return settings if model is None else replace(settings, model_name=model, model_path="")
