"""Finds the model file, and checks whether it can be served."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.files.remedies import remedy
from llama_gguf.files.sizes import size_text
from llama_gguf.models.gguf import ModelFacts, read_facts, read_kind
from llama_gguf.models.gguf_cursor import GgufError
from llama_gguf.models.kinds import VOCABULARY, Kind
from llama_gguf.values import Value, replace

MAX_LISTED: Final = 20
SUFFIX: Final = ".gguf"

# The names that llama-gguf-split uses, by which llama-server finds the other parts.
_PART: Final = re.compile(r"(?P<stem>.+)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")

NOT_NAMED: Final = 2
"""Exit status if the settings name no file: not set, missing, or a directory."""
BROKEN: Final = 1
"""Exit status if the file cannot be served."""


class Model(Value):
    path: str
    """Absolute, for llama-server's ``--model``; of a split model, the first part."""
    parts: tuple[str, ...]
    """All files of the model, in order; ``path`` is the first."""
    bytes: int
    """Size of all parts together."""
    facts: ModelFacts
    """Of a split model: those of the first part, with parameters and sizes of all parts."""


def resolve(
    *,
    model_path: str,
    model_name: str,
    models_dir: str,
    pulled: Mapping[str, str],
    hint: str = "",
) -> Model:
    """Find the model that the settings name, and check its files.

    The first case that applies:

    1. MODEL_PATH is set: it is the path.
    2. MODEL_NAME contains a slash, or is a file: it is a path.
    3. It is a file in MODELS_DIR, with or without ``.gguf``.
    4. It is a name in the catalogue, whose file is in MODELS_DIR.

    Args:
        model_path: MODEL_PATH, empty if not set.
        model_name: MODEL_NAME, empty if not set.
        models_dir: MODELS_DIR.
        pulled: by name in the catalogue, the file in MODELS_DIR.
        hint: what MODEL_NAME may mean, if there is no such file.

    Raises:
        UserError: exit status ``NOT_NAMED`` or ``BROKEN``; the message lists the models.
    """
    try:
        path = _find(model_path, model_name, models_dir=models_dir, pulled=pulled, hint=hint)
        return read_model(path)
    except UserError as error:
        raise UserError(f"{error}\n{listing(models_dir)}", error.exit_status) from None


def _find(
    model_path: str, model_name: str, *, models_dir: str, pulled: Mapping[str, str], hint: str
) -> str:
    if not model_path and not model_name:
        raise UserError(
            "No model is set. Use `llama-gguf serve MODEL`, MODEL_NAME or MODEL_PATH.",
            NOT_NAMED,
        )
    if model_path:
        candidates = [model_path]  # 1
    elif "/" in model_name or os.path.isfile(model_name):
        candidates = [model_name]  # 2
    else:
        names = [model_name, model_name + SUFFIX]  # 3
        names += [pulled[model_name]] if model_name in pulled else []  # 4
        candidates = [os.path.join(models_dir, name) for name in names]
    return _first_there(candidates, model_path or model_name, pulled=pulled, hint=hint)


def _first_there(
    candidates: Sequence[str], wanted: str, *, pulled: Mapping[str, str], hint: str
) -> str:
    # Any part of a split model will do: `read_model` reports missing ones. A directory is used
    # only if there is no file, since both x/ and x.gguf may exist.
    there = [c for c in candidates if any(os.path.lexists(p) for p in part_paths(c))]
    if there:
        return next((c for c in there if not os.path.isdir(c)), there[0])
    hidden = next((c for c in candidates if _is_hidden(c)), None)
    if hidden is not None:
        raise UserError(
            f"The model {hidden} cannot be accessed: Permission denied. Check the owners and modes "
            "of the directories in its path.",
            NOT_NAMED,
        )
    if wanted in pulled:
        hint = f"Fetch it with `llama-gguf pull {wanted}`."
    elif not hint:
        hint = "Check the spelling, or fetch a model with `llama-gguf pull`."
    raise UserError(f"There is no model {wanted}. {hint}", NOT_NAMED)


def _is_hidden(path: str) -> bool:
    """Whether this user may not search a directory of *path*, so that a file may be there."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def read_model(path: str) -> Model:
    """Check all files of the model at *path*, which may be any part of a split one.

    Raises:
        UserError: exit status ``NOT_NAMED`` if it is not a regular file, else ``BROKEN``.
    """
    parts = tuple(os.path.abspath(p) for p in part_paths(path))
    missing = [os.path.basename(p) for p in parts if not os.path.exists(p)]
    if missing:
        raise UserError(_missing_message(path, missing, count=len(parts)), BROKEN)
    facts = [read_file(p) for p in parts]
    if len(parts) == 1 and facts[0].split_count > 1:
        if facts[0].file_bytes > facts[0].needed_bytes:
            raise UserError(
                f"{path} begins with one of {facts[0].split_count} parts, and has more after it: "
                "parts cannot be joined as with `cat`. Serve the parts themselves, or join them "
                "with llama-gguf-split --merge.",
                BROKEN,
            )
        raise UserError(
            f"{path} is one of {facts[0].split_count} parts, but its name does not show this: "
            "llama-server finds the others by names such as MODEL-00001-of-00003.gguf. "
            "Rename the files.",
            BROKEN,
        )
    if len(parts) > 1:
        _check_parts(parts, facts)
    whole = _added_up(facts)
    kind = whole.kind or (None if whole.tensors else VOCABULARY)
    if kind is not None:
        raise UserError(not_a_model(path, kind), BROKEN)
    return Model(path=parts[0], parts=parts, bytes=whole.file_bytes, facts=whole)


def _check_parts(parts: Sequence[str], facts: Sequence[ModelFacts]) -> None:
    """Check that the number of each part is that in its name.

    Raises:
        UserError: exit status ``BROKEN``.
    """
    for number, (path, part) in enumerate(zip(parts, facts, strict=True)):
        if (part.split_no, part.split_count) != (number, len(parts)):
            raise UserError(
                f"{path} is, according to its header, part {part.split_no + 1} of "
                f"{part.split_count}. Rename the files, or fetch them again.",
                BROKEN,
            )


def not_a_model(path: str, kind: Kind) -> str:
    """What the file at *path* is, and what it is for."""
    return f"{path} is {kind.what}.\n{kind.advice.format(path=path)}"


def part_paths(path: str) -> list[str]:
    """All parts of the split model that *path* belongs to; only *path* if it is not a part."""
    folder, name = os.path.split(path)
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["no"]) <= int(match["count"]):
        return [path]
    stem, count = match["stem"], match["count"]
    return [
        os.path.join(folder, f"{stem}-{no:05}-of-{count}{SUFFIX}")
        for no in range(1, int(count) + 1)
    ]


def _missing_message(path: str, missing: Sequence[str], *, count: int) -> str:
    if count == 1:
        return f"{path} is a link to a file that does not exist."
    shown = [f"  {name}" for name in missing[:MAX_LISTED]]
    if len(missing) > MAX_LISTED:
        shown.append(f"  and {len(missing) - MAX_LISTED} more")
    return "\n".join(
        [f"{path} is one of {count} parts. Fetch the missing ones into the same directory:", *shown]
    )


def read_file(path: str) -> ModelFacts:
    """Check a single file; raises as ``read_model`` does."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a directory. Specify the {SUFFIX} file in it.", NOT_NAMED)
        if not stat.S_ISREG(status.st_mode):  # a pipe would block forever
            raise UserError(f"{path} is not a regular file.", NOT_NAMED)
        with open(path, "rb") as file:
            return read_facts(file.read, status.st_size)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. {remedy(error, path)}", BROKEN
        ) from None
    except GgufError as error:
        raise UserError(
            f"{path} is {error}.\nFetch it again, as with `llama-gguf pull`, or use another file.",
            BROKEN,
        ) from None


def is_whole(path: str) -> bool:
    """Whether there is a complete, valid model file at *path*."""
    try:
        read_file(path)
    except UserError:
        return False
    return True


def _added_up(facts: Sequence[ModelFacts]) -> ModelFacts:
    return replace(
        facts[0],
        parameters=sum(f.parameters or 0 for f in facts) or None,
        tensors=tuple(tensor for f in facts for tensor in f.tensors),
        file_bytes=sum(f.file_bytes for f in facts),
        needed_bytes=sum(f.needed_bytes for f in facts),
    )


def listing(models_dir: str) -> str:
    """The models in *models_dir* with their sizes, as text; if there are none, how to get one."""
    models = sorted(_models_in(models_dir))
    if not models:
        if os.path.isdir(models_dir) and not os.access(models_dir, os.R_OK | os.X_OK):
            return f"{models_dir} cannot be read: Permission denied."
        return (
            f"There are no {SUFFIX} files in {models_dir}. "
            "`llama-gguf pull smollm2` fetches a small demo model."
        )
    lines = [
        f"  {name}  {size_text(size)}{_remark(os.path.join(models_dir, name))}"
        for name, size in models[:MAX_LISTED]
    ]
    if len(models) > MAX_LISTED:
        lines.append(f"  and {len(models) - MAX_LISTED} more")
    return "\n".join([f"Models in {models_dir}:", *lines])


def _remark(path: str) -> str:
    """What is wrong with the file, or what it is if not a model, for the list of models."""
    try:
        kind = _read_kind(path)
        if kind is None:
            with open(path, "rb") as file:
                read_facts(file.read, os.path.getsize(path))
    except OSError:
        return "  (cannot be read)"
    except GgufError as error:
        return f"  ({error})"
    return f"  ({kind.what})" if kind else ""


def kind_at(path: str) -> Kind | None:
    """What the file at *path* is; None for a model, and for a file that cannot be read."""
    try:
        return _read_kind(path)
    except (OSError, GgufError):
        return None


def _read_kind(path: str) -> Kind | None:
    with open(path, "rb") as file:
        return read_kind(file.read, os.path.getsize(path))


def _models_in(folder: str) -> Iterator[tuple[str, int]]:
    """Name and size of each model; of a split one, the name of the first part, the size of all."""
    try:
        names = {name for name in os.listdir(folder) if name.endswith(SUFFIX)}
    except OSError:
        return
    names = {name for name in names if os.path.isfile(os.path.join(folder, name))}
    for name in names:
        parts = [p for p in part_paths(name) if p in names]
        if name == parts[0]:
            yield name, sum(os.path.getsize(os.path.join(folder, p)) for p in parts)
