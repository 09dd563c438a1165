"""Names of log files, and which of them are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

from llama_gguf.config.schema import LogSettings
from llama_gguf.wall_clock import iso_time, wall_now

OTHERS_LIVE_SECONDS: Final = 86_400.0
"""A younger log of another instance in the same folder may be in use."""


def engine_folder(settings: LogSettings) -> str:
    """The folder of the engines' logs."""
    name = f"llama-{settings.worker_type}" if settings.worker_type else settings.log_name
    return os.path.join(settings.log_dir, name)


def stamped(settings: LogSettings, folder: str, kind: str) -> str:
    """The path of a new log in *folder*: the time, its *kind* and the instance."""
    stamp = iso_time(wall_now()).replace("-", "").replace(":", "")
    return os.path.join(folder, f"{stamp}Z_{kind}_{settings.instance_id}.log")


def prune(settings: LogSettings, folder: str, kind: str, *, but: str) -> None:
    """Remove the oldest logs of *kind* in *folder*: LOG_BACKUPS remain, in addition to *but*.

    Several instances may share the folder. Logs that another may still write to are kept.
    """
    with contextlib.suppress(OSError):
        found = [e for e in os.scandir(folder) if f"_{kind}_" in e.name and ".log" in e.name]
        for entry in _surplus(found, settings, kind, but):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _surplus(
    found: Iterable[os.DirEntry[str]], settings: LogSettings, kind: str, but: str
) -> list[os.DirEntry[str]]:
    old = [e for e in found if e.path != but]
    old.sort(key=lambda e: e.stat().st_mtime, reverse=True)
    horizon = wall_now() - OTHERS_LIVE_SECONDS
    ours = f"_{kind}_{settings.instance_id}.log"
    return [e for e in old[settings.log_backups :] if ours in e.name or e.stat().st_mtime < horizon]


def latest(folder: str, kind: str) -> str | None:
    """The path of the log of *kind* in *folder* that was written last; None if there is none."""
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if f"_{kind}" in e.name and e.name.endswith(".log")]
        return max(found, key=lambda e: (e.stat().st_mtime_ns, e.name)).path if found else None
    except OSError:
        return None
