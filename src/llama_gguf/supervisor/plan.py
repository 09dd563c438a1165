"""Decisions of a start about the model, shared by `serve` and `check`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from llama_gguf.config.schema import ModelSettings
from llama_gguf.files.sizes import size_text
from llama_gguf.models.hub_address import PREFIX, canonical
from llama_gguf.models.model_file import Model, read_model, resolve
from llama_gguf.models.progress import MeterFactory
from llama_gguf.models.wanted import KNOWN_FILES, find, is_fetchable


def must_be_fetched(settings: ModelSettings) -> bool:
    """Whether MODEL_NAME must be fetched by `pull` because it is not present yet.

    Raises:
        UserError: it cannot be fetched, or the path of its file has another model.
    """
    name = settings.model_name
    if settings.model_path or not is_fetchable(name):
        return False
    return find(name, settings.models_dir) is None


def find_model(settings: ModelSettings) -> Model:
    """The model that the settings name, its files checked.

    Raises:
        UserError: there is none, or it cannot be served; the message lists the models present.
    """
    path, name = settings.model_path, settings.model_name
    if not path and is_fetchable(name):
        path = find(name, settings.models_dir) or ""
    return resolve(
        model_path=path,
        model_name=name,
        models_dir=settings.models_dir,
        pulled=KNOWN_FILES,
        hint=_hub_hint(name) if not settings.model_path else "",
    )


def _hub_hint(name: str) -> str:
    """The question whether *name*, a path, is meant as the address of a hub; else empty."""
    address = canonical(name, is_bare=True)
    return f"Did you mean {address}?" if address.startswith(PREFIX) else ""


def fetch_model(
    settings: ModelSettings, environ: Mapping[str, str], meter_factory: MeterFactory
) -> Model:
    """Fetch MODEL_NAME, and check the file.

    Raises:
        UserError: it cannot be fetched.
    """
    from llama_gguf.models.pull import pull  # noqa: PLC0415  # 2 MB that most starts do not need

    pulled = pull(
        settings.model_name, settings.models_dir, meter_factory=meter_factory, environ=environ
    )
    return read_model(pulled.path)


def alias_of(model: Model) -> str:
    """The name that clients see: the file's, without extension and part number."""
    name = os.path.basename(model.path).removesuffix(".gguf")
    # It is in llama-server's JSON, which must be UTF-8; the name of a file need not be.
    name = os.fsencode(name).decode("utf-8", "replace")
    return re.sub(r"-00001-of-[0-9]{5}$", "", name)


def model_text(model: Model) -> str:
    """A description of the model, in one line."""
    facts = model.facts
    parts = [
        facts.architecture,
        f"{facts.parameters / 1e6:.0f}M parameters" if facts.parameters else "",
        facts.quantization,
        f"trained context {facts.context_length}" if facts.context_length else "",
        size_text(model.bytes),
    ]
    return f"{model.path} ({', '.join(part for part in parts if part)})"


def facts_of(model: Model, *, context: int | None, engine_version: str) -> dict[str, str | int]:
    """The facts about model and engine in /health: no secret, no path.

    Args:
        model: which is served.
        context: tokens that one request may use; None if unknown.
        engine_version: of llama-server.
    """
    facts = model.facts
    known = {
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "quantization": facts.quantization,
        "size_bytes": model.bytes,
        "trained_context": facts.context_length,
        "context": context,
        "engine_version": engine_version,
    }
    return {name: value for name, value in known.items() if value}
