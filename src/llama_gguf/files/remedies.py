"""What an operator can do about an error of the file system, by its cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

_REMEDIES: Final[Mapping[int, str]] = {
    errno.EACCES: "Check its owner and mode.",
    errno.EPERM: "Check its owner and mode, and its attributes (lsattr).",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "A part of the path is a file and not a directory: check the path.",
    errno.EISDIR: "It is a directory: check the path.",
    errno.ELOOP: "Its symbolic links form a circle.",
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.EROFS: "Its file system is read-only: use another directory, or mount it writable.",
    errno.ENOSPC: "Free some space there, or use another directory.",
    errno.EDQUOT: "The quota of the disk is used up: free some space, or use another directory.",
    errno.EFBIG: "Its file system (FAT32: 4 GB) or `ulimit -f` allows no file of this size.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.ENFILE: "The whole machine has too many open files: raise fs.file-max.",
    errno.EIO: "The disk or the network file system has failed: see `dmesg`.",
    errno.ESTALE: "The network file system was changed on the server: mount it again.",
    errno.ETXTBSY: "A running program uses the file.",
}
NO_INODES: Final = "The file system has no free inodes (`df -i`): remove files, or use another one."


def remedy(error: OSError, path: str) -> str:
    """A sentence on what to do about *error* with the file or directory *path*."""
    if error.errno == errno.ENOSPC and has_no_inodes(path):
        return NO_INODES
    return _REMEDIES.get(error.errno or 0, "Check the file and its volume.")


def has_no_inodes(path: str) -> bool:
    """Whether no further file can be created on the file system of *path*, which need not exist."""
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    try:
        status = os.statvfs(path or ".")
    except OSError:
        return False
    return status.f_files > 0 and status.f_favail == 0  # some file systems have no fixed number
