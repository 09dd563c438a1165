"""The files that EXTRA_ARGS names: whether they exist and are what the flag needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.cli.fit import Companion
from llama_gguf.errors import UserError
from llama_gguf.models import memory
from llama_gguf.models.engine_options import Options, files
from llama_gguf.models.kinds import ADAPTER, CONTROL_VECTOR, DRAFT, PROJECTOR, Kind
from llama_gguf.models.model_file import part_paths, read_file

# By flag, what its file may be; None for a model.
_WANTED: Final[Mapping[str, tuple[Kind | None, ...]]] = {
    "--lora": (ADAPTER,),
    "--lora-scaled": (ADAPTER,),
    "--control-vector": (CONTROL_VECTOR,),
    "--control-vector-scaled": (CONTROL_VECTOR,),
    "--mmproj": (PROJECTOR,),
    "-mm": (PROJECTOR,),
    "--model-draft": (DRAFT, None),
    "--spec-draft-model": (DRAFT, None),
    "-md": (DRAFT, None),
}


def results(words: Sequence[str]) -> Iterator[Result]:
    """What is wrong with the files that EXTRA_ARGS, split into *words*, names."""
    for flag, path in files(words):
        if wrong := _mistake(flag, path):
            yield Result("EXTRA_ARGS", f"{flag} {path}: {wrong}", Level.WRONG)


def _mistake(flag: str, path: str) -> str:
    if not os.path.exists(path):
        return "there is no such file"
    if flag not in _WANTED:
        return ""
    try:
        kind = read_file(path).kind
    except UserError as error:
        return str(error).split("\n")[0].removeprefix(f"{path} ")
    wanted = _WANTED[flag]
    if kind in wanted:
        return ""
    words = wanted[0].what if wanted[0] else "a model"
    return f"the file is {kind.what if kind else 'a model'}, but must be {words}"


def companions(chosen: Options) -> Iterator[Companion]:
    """What llama-server loads with the model, as far as the files can be read."""
    on_gpu = bool(chosen.ngl)
    if chosen.projector and (size := _size([chosen.projector])):
        yield Companion("projector", size, chosen.projector_offload)
    if chosen.draft and (size := _draft_bytes(chosen)):
        yield Companion("draft model", size, bool(chosen.draft_ngl))
    if size := _size(chosen.adapters):
        yield Companion("adapters", size, on_gpu)


def _draft_bytes(chosen: Options) -> int:
    try:
        facts = read_file(chosen.draft)
    except UserError:
        return 0
    wanted = memory.need(facts, chosen.draft_options())
    size = _size(part_paths(chosen.draft))
    return size + wanted.cache + wanted.compute if wanted else size


def _size(paths: Sequence[str]) -> int:
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
