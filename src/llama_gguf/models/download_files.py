"""Downloads on disk: their folder, free space, locks, checks and the final rename.

Everything is written in the directory of the final file, so that the last step is a rename: a
model file is complete or does not exist.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.files.remedies import NO_INODES, has_no_inodes, remedy
from llama_gguf.files.sizes import size_text
from llama_gguf.models.gguf import read_facts
from llama_gguf.models.gguf_cursor import GgufError
from llama_gguf.wall_clock import wall_now

TEMPORARY: Final = ".pull-"
"""Prefix of directories that are useless once their process has ended."""
_ABANDONED_SECONDS: Final = 7 * 24 * 3600.0  # a large model over a slow line takes days


@dataclass(frozen=True, slots=True)
class Pulled:
    path: str
    bytes: int
    sha256: str | None
    """The hash that was verified in this run; None if none was."""
    fetched: bool
    """False if the model was there already."""
    projector: str = ""
    """The address of the model's projector, if it was fetched from a repository with one."""


def make_folder(models_dir: str) -> None:
    """Create MODELS_DIR, and remove what killed processes left in it.

    Raises:
        UserError: it cannot be created, or is not writable.
    """
    try:
        os.makedirs(models_dir, exist_ok=True)
        writable = os.access(models_dir, os.W_OK | os.X_OK)
    except OSError as error:
        raise _no_folder(models_dir, f"{error.strerror}. {remedy(error, models_dir)}") from None
    if not writable:
        raise _no_folder(models_dir, f"no permission. {_why_unwritable(models_dir)}")
    _sweep(models_dir)


def _why_unwritable(models_dir: str) -> str:
    is_read_only = os.statvfs(models_dir).f_flag & os.ST_RDONLY
    number = errno.EROFS if is_read_only else errno.EACCES
    return remedy(OSError(number, ""), models_dir)


def _no_folder(models_dir: str, why: str) -> UserError:
    return UserError(
        f"Models cannot be stored in {models_dir}: {why}\n"
        "Use another directory: --models-dir or --data-dir (MODELS_DIR, DATA_DIR).",
        exit_status=2,
        settings=("models_dir", "data_dir"),
    )


def _sweep(models_dir: str) -> None:
    # By age and not by process id: several machines may share the directory.
    oldest = wall_now() - _ABANDONED_SECONDS
    for name in os.listdir(models_dir):
        path = os.path.join(models_dir, name)
        with suppress(FileNotFoundError):
            if name.startswith(TEMPORARY) and os.path.getmtime(path) < oldest:
                shutil.rmtree(path, ignore_errors=True)


def check_space(folder: str, needed: int) -> None:
    """Check that *folder* has space for a download of *needed* bytes.

    Raises:
        UserError: it has not; the message gives both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {size_text(free)} free, but {size_text(needed)} are needed.\n"
            "Free some space, or use another directory with --models-dir."
        )
    if has_no_inodes(folder):
        raise UserError(f"No file can be created in {folder}. {NO_INODES}")


def take_lock(descriptor: int, name: str) -> None:
    """Lock the file of *descriptor* until that is closed.

    Raises:
        UserError: another pull holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"Another pull of {name} is running. Wait for it to end, or stop it."
        ) from None
    except OSError:
        pass  # a file system without locks: there, only one pull of a model at a time is safe


def check_model(path: str, origin: str) -> None:
    """Check that the file that came from *origin* is a complete GGUF file.

    Raises:
        UserError: it is not; the message gives the reason.
    """
    try:
        with open(path, "rb") as file:
            read_facts(file.read, os.path.getsize(path))
    except GgufError as error:
        raise UserError(f"The content of {origin} is {error}.") from None


def sha256_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(temporary: str, final: str) -> None:
    """Write *temporary* to the disk (fsync), and rename it to *final*."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
