"""The defaults that depend on the machine: directories, and the instance's name.

RunPod mounts /runpod-volume on serverless workers and /workspace on pods. This changes only the
default of DATA_DIR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from llama_gguf.config.settings import Settings
from llama_gguf.values import replace

RUNPOD_VOLUME: Final = "/runpod-volume"
WORKSPACE: Final = "/workspace"
DEFAULT_DATA_DIR: Final = "/data"
_OWN: Final = "llama-gguf"
"""The directory below that for the data of a user."""


def resolve(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    is_dir: Callable[[str], bool],
    is_writable: Callable[[str], bool],
    host_name: str,
) -> Settings:
    """Fill in the defaults that depend on the machine.

    Args:
        settings: from ``load``.
        environ: the environment.
        is_dir: returns whether a folder exists.
        is_writable: returns whether this user can create files in a folder.
        host_name: the machine's name.
    """
    model, auth, logs = settings.model, settings.auth, settings.logs
    prompts = settings.prompts
    data_dir = model.data_dir or default_data_dir(environ, is_dir, is_writable)
    models_dir = model.models_dir or f"{data_dir}/models"
    return replace(
        settings,
        model=replace(model, data_dir=data_dir, models_dir=models_dir),
        prompts=replace(prompts, prompt_cache_dir=prompts.prompt_cache_dir or f"{data_dir}/cache"),
        auth=replace(auth, auth_keys_file=auth.auth_keys_file or f"{data_dir}/api_keys.txt"),
        logs=replace(
            logs,
            log_dir=logs.log_dir or f"{data_dir}/logs",
            instance_id=logs.instance_id or host_name,
        ),
    )


def default_data_dir(
    environ: Mapping[str, str], is_dir: Callable[[str], bool], is_writable: Callable[[str], bool]
) -> str:
    """The directory of all data, if it is not set.

    1. The first of /runpod-volume, /workspace and /data that exists.
    2. /data, if this user can create it.
    3. ``$XDG_DATA_HOME/llama-gguf``, where XDG_DATA_HOME is ~/.local/share unless it is an absolute
       path (https://specifications.freedesktop.org/basedir-spec/).
    4. /data, if the user has no home: the error about it gives the reason.
    """
    for folder in (RUNPOD_VOLUME, WORKSPACE, DEFAULT_DATA_DIR):
        if is_dir(folder):
            return folder  # 1
    if is_writable("/"):
        return DEFAULT_DATA_DIR  # 2
    base, home = environ.get("XDG_DATA_HOME", ""), environ.get("HOME", "")
    if base.startswith("/"):
        return f"{base.rstrip('/')}/{_OWN}"  # 3
    if home.startswith("/"):
        return f"{home.rstrip('/')}/.local/share/{_OWN}"  # 3
    return DEFAULT_DATA_DIR  # 4


def platform_of(data_dir: str) -> str:
    """The platform that the data directory indicates, for the log."""
    known = {RUNPOD_VOLUME: "RunPod serverless", WORKSPACE: "RunPod pod or other workspace"}
    return known.get(data_dir, "no known platform")


def data_dir_note(settings: Settings, source: str) -> str:
    """Why DATA_DIR is in the user's home, for the log; empty if it is not, or if it is set.

    Args:
        settings: from ``resolve``.
        source: of DATA_DIR.
    """
    data_dir = settings.model.data_dir
    if source != "default" or data_dir in (RUNPOD_VOLUME, WORKSPACE, DEFAULT_DATA_DIR):
        return ""
    return f"{DEFAULT_DATA_DIR} does not exist and cannot be created by this user"
