"""The keys file on disk, read and replaced as a whole.

A reader sees the complete old file or the complete new one: a change is written to a temporary
file in the same directory and renamed over it. Only ``access.keys`` parses the text.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EBUSY, ENOLCK, ENOSYS, EOPNOTSUPP
from typing import Final

from llama_gguf.errors import UserError
from llama_gguf.files.atomic import replace_file
from llama_gguf.files.remedies import remedy

_FOLDER_MODE: Final = 0o700
_NO_LOCKS: Final = frozenset([ENOSYS, ENOLCK, EOPNOTSUPP])
"""From file systems without locks, as some volumes have."""
_EXPOSED: Final = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


def read(path: str) -> str:
    """The text of the keys file, with its line ends unchanged.

    Raises:
        UserError: it is missing, is a directory, cannot be read, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(
            f"there is no keys file {path}; to use another file, set AUTH_KEYS_FILE or DATA_DIR\n"
            f"Create the first key with: llama-gguf keys generate --file {path}"
        ) from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a directory; specify the keys file in it. A container runtime creates a "
            "directory if the file to mount does not exist"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot read the keys file {path}: {error.strerror}\n{remedy(error, path)}"
        ) from None
    return decoded(data, path)


def read_other(path: str) -> str:
    """The text of another file, to import keys from.

    Raises:
        UserError: it is missing, is a directory, cannot be read, or is not UTF-8.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no file {path}; check the path")
    return read(path)


def decoded(data: bytes, path: str) -> str:
    """*data*, the content of *path*, as text.

    Raises:
        UserError: it is not UTF-8; the message contains the line number and no content.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"the keys file {path} is not UTF-8 text (line {line}); save it as UTF-8"
        ) from None


def exposed_mode(path: str) -> int | None:
    """The file's mode, if users other than its owner and us can read or change it."""
    try:
        found = os.stat(path)
    except OSError:
        return None  # `read` reports the reason
    mode = stat.S_IMODE(found.st_mode)
    return mode if is_exposed(mode, owner=found.st_uid, reader=os.geteuid()) else None


def is_exposed(mode: int, *, owner: int, reader: int) -> bool:
    """Whether a file of *owner* is accessible to more users than necessary for *reader*."""
    # Kubernetes mounts a Secret as a file of root, which its readers can access as a group only.
    is_given_by_root = owner == 0 and reader != 0
    return bool(mode & (_EXPOSED & ~stat.S_IRGRP if is_given_by_root else _EXPOSED))


def warn_if_exposed(path: str) -> str | None:
    """The text of a warning, if users other than the owner can read or change the file."""
    mode = exposed_mode(path)
    if mode is None:
        return None
    return f"other users can access {path} (mode {mode:04o}); restrict it with: chmod 600 {path}"


def edit(
    path: str, change: Callable[[str], str], flock: Callable[[int, int], None] = fcntl.flock
) -> None:
    """Apply *change* to the text of the file, and replace the file; a missing one counts as empty.

    Concurrent edits run one after the other, so none is lost, except on a file system without
    locks. If *change* raises or the machine crashes, the file is unchanged.

    Args:
        path: the keys file.
        change: returns the new text.
        flock: as ``fcntl.flock``.

    Raises:
        UserError: the file cannot be read or replaced.
    """
    target = os.path.realpath(path)  # a symlink is kept, and its target is replaced
    try:
        with _locked_folder(os.path.dirname(target), flock) as folder:
            before = _text_or_nothing(target)
            after = change(before)
            if after != before:
                _replace(target, after.encode("utf-8"))
                _settle(folder)
    except OSError as error:
        raise UserError(_not_written(path, error)) from None


@contextmanager
def _locked_folder(folder: str, flock: Callable[[int, int], None]) -> Iterator[int]:
    """Hold the lock on *folder*, creating it if missing; yields its descriptor.

    The lock is on the directory, because each edit replaces the file itself, and a separate lock
    file would remain afterwards. The kernel releases it when the process ends. On a network file
    system it may only exclude processes on the same machine.
    """
    with suppress(FileExistsError):  # if it is not a directory, `open` has the better message
        os.makedirs(folder, mode=_FOLDER_MODE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield descriptor
    finally:
        os.close(descriptor)


def _text_or_nothing(target: str) -> str:
    if not os.path.exists(target):
        return ""
    if not os.path.isfile(target) and not os.path.isdir(target):
        # Renaming over /dev/null or a pipe would remove it for all other processes.
        raise UserError(f"{target} is not a regular file; specify another one with --file")
    return read(target)


def _replace(target: str, data: bytes) -> None:
    # A random name: on a network file system, two machines could write to the same file.
    beside = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{os.urandom(6).hex()}"
    try:
        replace_file(target, data, temporary=beside, keeps_owner=True, is_synced=True)
    finally:
        with suppress(FileNotFoundError):  # it was renamed
            os.unlink(beside)


def _settle(folder: int) -> None:
    """Make the rename durable across a power failure, where the file system supports it."""
    with suppress(OSError):  # some network file systems do not, and the edit is done already
        os.fsync(folder)


def _not_written(path: str, error: OSError) -> str:
    text = f"cannot write the keys file {path}: {error.strerror}\n"
    if error.errno == EBUSY:
        # A single file that Docker has bind-mounted cannot be the target of a rename.
        return (
            text
            + "A file that is mounted by itself cannot be replaced: mount its directory instead."
        )
    if error.errno == EACCES:
        what = "Check the owner of its directory."
    else:
        what = remedy(error, os.path.dirname(os.path.abspath(path)))
    return text + what + " To use another file: --file, AUTH_KEYS_FILE, DATA_DIR"
