"""Whether PROMPT_CACHE can be of use, for `check`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.config.settings import Settings
from llama_gguf.engines import locate
from llama_gguf.engines.command import engine_argv, engine_environment, extra_args
from llama_gguf.errors import UserError
from llama_gguf.files.sizes import size_text
from llama_gguf.models.engine_options import Options, options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.model_file import Model
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.supervisor import division, plan, prompt_source, prompts

SUBJECT: Final = "prompt cache"


def results(
    settings: Settings, environ: Mapping[str, str], unwritable: Callable[[str], str]
) -> Iterator[Result]:
    """Nothing unless PROMPT_CACHE is on. What prevents a start is reported elsewhere.

    Args:
        settings: all of them.
        environ: our environment.
        unwritable: returns why a folder cannot be used; empty if it can.
    """
    if not settings.prompts.prompt_cache:
        return
    try:
        words = extra_args(settings.engine)
        if plan.must_be_fetched(settings.model):
            return
        model = plan.find_model(settings.model)
        engine = locate.locate(
            settings.engine.llama_server, environ.get("PATH", os.defpath), environ=environ
        )
    except UserError:
        return
    chosen = options(settings.engine, words, environ)
    path, size = settings.prompts.prompt_cache_dir, settings.prompts.prompt_cache_size
    wrong = prompt_source.obstacle(chosen, words) or unwritable(path)
    if wrong:
        yield Result(SUBJECT, f"no prompts are saved: {wrong}", Level.NOTE)
        return
    if settings.routes.exposed_routes == "all":
        text = "EXPOSED_ROUTES=all: every key can save, restore and erase slots"
        yield Result(SUBJECT, text, Level.NOTE)
    verdict = _verdict(settings, environ, model, engine)
    doubt = _doubt(model.facts, chosen)
    if verdict is False:
        text = "off: in an earlier run, llama-server could not use saved prompts"
        yield Result(SUBJECT, text, Level.NOTE)
    elif verdict is None and doubt:
        text = f"this model has {doubt}: saved prompts are unlikely to help, which a restart shows"
        yield Result(SUBJECT, text, Level.NOTE)
    else:
        proof = "seen to work" if verdict else "the first restart shows whether they help"
        yield Result(SUBJECT, f"up to {size_text(size)} in {path}; {proof}")


def _verdict(
    settings: Settings, environ: Mapping[str, str], model: Model, engine: locate.Engine
) -> bool | None:
    """Whether saved prompts helped in an earlier run with these options; None if unknown."""
    passed, _ = engine_environment(environ, api_key="", changes=engine.environment_changes)
    chosen, _ = division.divided(settings.engine, environ, model.facts)
    argv = engine_argv(engine.path, chosen, model_path=model.path, alias=plan.alias_of(model))
    source = prompt_source.source(
        model.parts,
        argv,
        passed,
        version=locate.version(engine, environ) or "unknown",
        chosen=options(chosen, extra_args(chosen), environ),
    )
    return prompts.known_verdict(source, Folder.of(settings.prompts).noted)


def _doubt(facts: ModelFacts, chosen: Options) -> str:
    """Why a restored state could be useless: the model cannot go back to an earlier token."""
    layers = facts.cache.layers if facts.cache else ()
    if any(layer.state for layer in layers):
        return "recurrent layers"
    if any(layer.window for layer in layers) and not chosen.swa_full:
        return "a sliding window (without --swa-full)"
    return ""
