"""The keys file on disk, read and replaced as a whole.

A reader sees the old file or the new one and never a part, since a change is written
beside the file and renamed over it. What the text means is known to ``access.keys`` alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY
from typing import Final

from llama_gguf.errors import UserError

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_EXPOSED: Final = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


def read(path: str) -> str:
    """The text of the keys file, line ends as they are.

    Raises:
        UserError: it is missing, a folder, cannot be read, or is not UTF-8.
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
        raise UserError(f"{path} is a directory; specify the keys file in it") from None
    except OSError as error:
        raise UserError(
            f"cannot read the keys file {path}: {error.strerror}\n"
            f"Check its owner and mode with: ls -l {path}"
        ) from None
    return decoded(data, path)


def read_other(path: str) -> str:
    """The text of a file that keys are taken from.

    Raises:
        UserError: it is missing, a folder, cannot be read, or is not UTF-8.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no file {path}; check the path")
    return read(path)


def decoded(data: bytes, path: str) -> str:
    """The text that *data* from *path* is.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"the keys file {path} is not UTF-8 text (line {line}); save it as UTF-8"
        ) from None


def exposed_mode(path: str) -> int | None:
    """The file's mode, when users other than its owner can read or change it."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None  # reading it gives the reason
    return mode if mode & _EXPOSED else None


def warn_if_exposed(path: str) -> str | None:
    """A sentence to warn with when users other than the owner can read or change the file."""
    mode = exposed_mode(path)
    if mode is None:
        return None
    return f"other users can access {path} (mode {mode:04o}); restrict it with: chmod 600 {path}"


def edit(path: str, change: Callable[[str], str]) -> None:
    """Replace the file by what *change* makes of its text; a missing file counts as empty.

    Of two edits at the same time one waits for the other, so that neither is lost. When
    *change* raises, or the machine fails, the file is as it was.

    Raises:
        UserError: the file cannot be read or replaced.
    """
    target = os.path.realpath(path)  # a symlink stays, and its target is replaced
    try:
        with _locked_folder(os.path.dirname(target)) as folder:
            before = _text_or_nothing(target)
            after = change(before)
            if after != before:
                _replace(target, after.encode("utf-8"))
                _settle(folder)
    except OSError as error:
        raise UserError(_not_written(path, error)) from None


@contextmanager
def _locked_folder(folder: str) -> Iterator[int]:
    """Hold the lock of *folder*, which is made if it is missing; gives its descriptor.

    The lock is on the folder, because the file is another one after each edit and a lock
    file would be left lying about. It ends with the process. On a network file system it
    holds among the processes of one machine.
    """
    with suppress(FileExistsError):  # should it be no folder, opening it says so better
        os.makedirs(folder, mode=_FOLDER_MODE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _text_or_nothing(target: str) -> str:
    if not os.path.exists(target):
        return ""
    if not os.path.isfile(target) and not os.path.isdir(target):
        # Renaming over /dev/null or a pipe would take it away from everybody else.
        raise UserError(f"{target} is not a regular file; specify another one with --file")
    return read(target)


def _replace(target: str, data: bytes) -> None:
    # Not a fixed name: on a network file system two machines could write into one file.
    beside = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{os.urandom(6).hex()}"
    try:
        _write_new(beside, data, like=target)
        os.replace(beside, target)
    finally:
        with suppress(FileNotFoundError):  # which is what success looks like
            os.unlink(beside)


def _write_new(path: str, data: bytes, *, like: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    with open(descriptor, "wb") as file:
        _keep_owner(descriptor, like)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _keep_owner(descriptor: int, like: str) -> None:
    """Give the file to the owner of *like*.

    Else root, in a container, would take the file from the user that the gateway runs as.
    """
    try:
        old = os.stat(like)
    except FileNotFoundError:
        return
    if old.st_uid != os.fstat(descriptor).st_uid:
        os.fchown(descriptor, old.st_uid, old.st_gid)


def _settle(folder: int) -> None:
    """Let the new name outlast a power cut, where the file system can promise that."""
    with suppress(OSError):  # some network file systems cannot, and the change is done by now
        os.fsync(folder)


def _not_written(path: str, error: OSError) -> str:
    text = f"cannot write the keys file {path}: {error.strerror}\n"
    if error.errno == EBUSY:
        # Docker mounts a single file so that nothing can be renamed over it.
        return (
            text
            + "A file that is mounted by itself cannot be replaced: mount its directory instead."
        )
    return (
        text
        + "Check the owner of its directory, or use another file: --file, AUTH_KEYS_FILE, DATA_DIR"
    )
