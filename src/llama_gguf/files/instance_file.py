"""The path of a file that each instance which shares a folder has for itself."""

from __future__ import annotations

import os
import re
from typing import Final

_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")


def path_of(data_dir: str, folder: str, instance_id: str) -> str:
    """The path of the instance's file in *folder*, which is in DATA_DIR."""
    name = _UNFIT.sub("_", instance_id).lstrip(".") or "gateway"
    return os.path.join(data_dir, folder, f"{name}.json")
