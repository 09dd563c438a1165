"""How the settings divide the context among slots; shared by `serve` and `check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from llama_gguf.config.schema import EngineSettings
from llama_gguf.engines.command import extra_args
from llama_gguf.models import slots
from llama_gguf.models.engine_options import Options, options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.slots import Division
from llama_gguf.values import replace

_FIT_CTX: Final = frozenset(["-fitc", "--fit-ctx"])
"""With these and CTX=0, llama-server reduces the context to what fits into memory."""


def divided(
    settings: EngineSettings, environ: Mapping[str, str], facts: ModelFacts
) -> tuple[EngineSettings, Division]:
    """*settings* with the number of slots, and what each slot has of the context.

    PARALLEL is chosen here unless it is set, or EXTRA_ARGS or a variable of llama-server set the
    number of slots or make them share the context.

    Raises:
        UserError: EXTRA_ARGS cannot be used.
    """
    words = extra_args(settings)
    chosen = options(settings, words, environ)
    context = _context(chosen, words, facts)
    if not (chosen.parallel or chosen.unified):
        count = slots.slots_for(context, facts.context_length)
        settings = replace(settings, parallel=count)
        chosen = replace(chosen, parallel=count)
    division = slots.divide(
        context,
        facts.context_length,
        slots=chosen.slots,
        is_shared=chosen.shares_context and chosen.slots > 1,
    )
    return settings, division


def _context(chosen: Options, words: Sequence[str], facts: ModelFacts) -> int | None:
    """The tokens of all slots together; None if llama-server decides on them when it starts."""
    if chosen.ctx:
        return chosen.ctx
    is_reduced = chosen.fits_ctx or any(word.replace("_", "-") in _FIT_CTX for word in words)
    return None if is_reduced else facts.context_length


def text(settings: EngineSettings, division: Division) -> str:
    """The two values of ``divided``, and what to change, for the log and `check`."""
    described = description(division)
    if settings.ctx and division.total_tokens and division.total_tokens > settings.ctx:
        described += f" (CTX={settings.ctx}, rounded up: llama-server counts in {slots.PAD_TOKENS})"
    if division.is_shared:
        danger = "when running requests together need more, llama-server ends all of them"
        advice = "set PARALLEL instead of -np, -kvu or their variables to divide the context"
        return f"{described}. But {danger}: {advice}"
    is_by_parallel = settings.parallel == division.slots  # and not by EXTRA_ARGS
    if is_by_parallel and (division.request_tokens or 0) < (division.alone_tokens or 0):
        is_whole = division.alone_tokens == division.total_tokens
        more = "the whole context" if is_whole else f"{division.alone_tokens} tokens"
        return f"{described}. PARALLEL=1 gives one request {more}"
    return described


def description(division: Division) -> str:
    """The slots, their context, and what one request may use, in one line."""
    count, tokens = division.slots, division.request_tokens
    how = "share" if division.is_shared else "divide"
    subject = f"{count} slots {how}" if count > 1 else "1 slot has"
    if tokens is None:
        return f"{subject} the context, whose size is only known when llama-server has started"
    return f"{subject} {division.total_tokens} tokens; a request may use {tokens} of them"
