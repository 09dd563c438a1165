"""The end of the engine's log, which the supervisor writes, for the dashboard."""

from __future__ import annotations

import os
from typing import Final

from llama_gguf.config.schema import LogSettings
from llama_gguf.files.retention import engine_folder

MAX_LINES: Final = 300
MAX_TAIL_BYTES: Final = 65536


def tail(settings: LogSettings) -> dict[str, object]:
    """The last lines of the newest log of an engine, for programs. Blocks."""
    folder = engine_folder(settings)
    end = f"_{settings.instance_id}.log"
    try:
        found = [
            entry
            for entry in os.scandir(folder)
            if "_server" in entry.name and entry.name.endswith(end)
        ]
        newest = max(found, key=lambda entry: entry.stat().st_mtime, default=None)
        if newest is None:
            return {"file": "", "lines": []}
        with open(newest.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - MAX_TAIL_BYTES, 0))
            data = file.read(MAX_TAIL_BYTES)
    except OSError:
        return {"file": "", "lines": []}
    lines = data.decode("utf-8", "replace").splitlines()
    whole = lines[1:] if size > MAX_TAIL_BYTES else lines
    return {"file": newest.path, "lines": whole[-MAX_LINES:]}
