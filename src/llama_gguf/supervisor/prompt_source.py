"""Whether the prompts of an engine can be kept, and what they depend on.

Shared by `serve` and `check`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from llama_gguf.models.engine_options import Options, files
from llama_gguf.prompt_cache import model_digest
from llama_gguf.prompt_cache.entry import options_of
from llama_gguf.supervisor.launch import PromptSource

_SAVE_PATH: Final = "--slot-save-path"
_SIMILARITY: Final = ("-sps", "--slot-prompt-similarity")
_MIB: Final = 1 << 20
_UNLIMITED: Final = 1 << 50


def obstacle(chosen: Options, words: Sequence[str]) -> str:
    """Why its prompts cannot be kept; empty if they can.

    Args:
        chosen: the options of llama-server.
        words: EXTRA_ARGS, split.
    """
    flags = {word.replace("_", "-") for word in words}
    if chosen.projector:
        return "llama-server does not save the slots of a multimodal model (--mmproj)"
    if chosen.adapters:
        return "a file does not record with which adapters it was computed (--lora)"
    if flags & {"--embedding", "--embeddings", "--rerank", "--reranking"}:
        return "embeddings and reranking have no conversations"
    if _SAVE_PATH in flags:
        return f"EXTRA_ARGS has {_SAVE_PATH}"
    if "--no-slots" in flags:
        return "EXTRA_ARGS has --no-slots"
    if "--no-cache-prompt" in flags:
        return "EXTRA_ARGS has --no-cache-prompt"
    return ""


def save_flags(folder: str, words: Sequence[str]) -> list[str]:
    """The flags with which llama-server saves slots in *folder*; *words* are EXTRA_ARGS.

    By default, a conversation takes the slot of another one that it shares a tenth of its prompt
    with, such as the template and a short system prompt, while other slots are empty. The earlier
    one is then in the cache in RAM alone, which cannot be saved.
    """
    # With a separator at its end: the engine of the wheel xllamacpp appends the name as it is.
    flags = [_SAVE_PATH, os.path.join(os.path.abspath(folder), "")]
    is_chosen = any(word.replace("_", "-") in _SIMILARITY for word in words)
    return flags if is_chosen else [*flags, _SIMILARITY[1], "0.5"]


def without_saving(argv: Sequence[str]) -> Sequence[str]:
    """*argv* without the folder, for a start while that cannot be used."""
    at = argv.index(_SAVE_PATH)
    return [*argv[:at], *argv[at + 2 :]]


def source(
    parts: Sequence[str],
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    version: str,
    chosen: Options,
) -> PromptSource:
    """What the prompts depend on. Looks at files.

    Args:
        parts: the files of the model.
        argv: llama-server's command line, without its address and its part of the GPUs.
        environ: its environment.
        version: that it reports.
        chosen: the options that result.
    """
    words = argv[1:]
    others = [f"{path} {model_digest.identity([path])}" for _, path in files(words)]
    has_ram = chosen.cache_ram_mib and "--no-cache-idle-slots" not in words
    ram_bytes = chosen.cache_ram_mib * _MIB if chosen.cache_ram_mib > 0 else _UNLIMITED
    return PromptSource(
        tuple(parts),
        model_digest.identity(parts),
        # A version is what its builder has written into it: the program itself counts too.
        f"{version} {_size(argv[0])}",
        (*options_of(words, environ), *others),
        ram_bytes if has_ram else 0,
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
