"""The defaults that depend on the machine: directories, and the instance's name.

RunPod mounts /runpod-volume on serverless workers and /workspace on pods. This changes only the
default of DATA_DIR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from llama_gguf.config.settings import Settings

RUNPOD_VOLUME: Final = "/runpod-volume"
WORKSPACE: Final = "/workspace"
DEFAULT_DATA_DIR: Final = "/data"


def resolve(settings: Settings, is_dir: Callable[[str], bool], host_name: str) -> Settings:
    """Fill in the defaults that depend on the machine.

    Args:
        settings: from ``load``.
        is_dir: returns whether a folder exists.
        host_name: the machine's name.
    """
    model, auth, logs = settings.model, settings.auth, settings.logs
    data_dir = model.data_dir or next(
        (d for d in (RUNPOD_VOLUME, WORKSPACE) if is_dir(d)), DEFAULT_DATA_DIR
    )
    models_dir = model.models_dir or f"{data_dir}/models"
    return replace(
        settings,
        model=replace(model, data_dir=data_dir, models_dir=models_dir),
        auth=replace(auth, auth_keys_file=auth.auth_keys_file or f"{data_dir}/api_keys.txt"),
        logs=replace(
            logs,
            log_dir=logs.log_dir or f"{data_dir}/logs",
            instance_id=logs.instance_id or host_name,
        ),
    )


def platform_of(data_dir: str) -> str:
    """The platform that the data directory indicates, for the log."""
    known = {RUNPOD_VOLUME: "RunPod serverless", WORKSPACE: "RunPod pod or other workspace"}
    return known.get(data_dir, "no known platform")
