"""Replaces a file atomically: readers see the old content or the new, never a part."""

from __future__ import annotations

import os
from contextlib import suppress


def replace_file(
    path: str,
    data: bytes,
    *,
    temporary: str,
    mode: int = 0o600,
    keeps_owner: bool = False,
    is_synced: bool = False,
) -> None:
    """Write *data* to *temporary*, and rename that to *path*.

    Args:
        path: may exist.
        data: the complete content.
        temporary: in the same folder, and used by no other process meanwhile. After an error it
            may be left there; the next call with the same name overwrites it.
        mode: of the new file, before the umask.
        keeps_owner: give the new file to the owner of the old one. Otherwise root, in a container,
            would take the file from the user of the gateway.
        is_synced: wait until *data* is on the disk before the rename, so that a power cut does not
            leave an incomplete file.

    Raises:
        OSError: *path* is unchanged.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode)
    with open(descriptor, "wb") as file:
        if keeps_owner:
            _keep_owner(descriptor, path)
        file.write(data)
        if is_synced:
            file.flush()
            os.fsync(descriptor)
    os.replace(temporary, path)


def _keep_owner(descriptor: int, path: str) -> None:
    with suppress(FileNotFoundError):
        old = os.stat(path)
        if old.st_uid != os.fstat(descriptor).st_uid:
            os.fchown(descriptor, old.st_uid, old.st_gid)
