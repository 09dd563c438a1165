"""The settings of a command, from its flags, the environment and files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from llama_gguf.config import masking
from llama_gguf.config import settings as settings_module
from llama_gguf.config.load import Files, FileValue, load_usable
from llama_gguf.config.platform import resolve
from llama_gguf.config.settings import SETTINGS, Settings
from llama_gguf.errors import UserError
from llama_gguf.values import Value

SETTING: Final = "setting_"
"""Prefix of the attributes with settings in the arguments of a command."""


def settings_in(arguments: object) -> dict[str, str]:
    """The settings that were given as arguments of a command, by the setting's name."""
    return {
        name.removeprefix(SETTING): value
        for name, value in vars(arguments).items()
        if name.startswith(SETTING) and value is not None
    }


class Context(Value):
    """The argument of every command."""

    settings: Settings
    """Folders and instance name have their effective values."""
    sources: Mapping[str, str]
    """The source of each setting, as in ``config.load.SOURCES``."""
    environ: Mapping[str, str]
    """With the variables of the env-file."""
    complaint: str = ""
    """Errors in the settings; only for commands that work without valid settings."""
    warnings: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    """The path of each file that was read, by its source."""
    read_again: Callable[[], Context] | None = None
    """Reads everything again, with the same flags and the same environment of this process."""

    def origin(self, name: str) -> str:
        """Where the setting *name* is set, for people."""
        source = self.sources[name]
        return self.files.get(source, source)


def read(
    flags: Mapping[str, str], environ: Mapping[str, str], *, env_file: str | None = None
) -> Context:
    """Read the settings; can be called again, for what has changed in the files.

    Args:
        flags: by the setting's name.
        environ: the environment of this process.
        env_file: the path of a file with further variables.
    """
    files: dict[str, str] = {}
    mistakes: list[str] = []
    warnings: list[str] = []
    variables: dict[str, str] = {}
    values: dict[str, FileValue] = {}
    try:
        if env_file:
            from llama_gguf.config.env_file import parse_env_file

            files["env-file"] = env_file
            variables = parse_env_file(_content(env_file, "--env-file"), env_file)
        if path := _config_path(flags, environ, variables):
            from llama_gguf.config.config_file import parse_config_file

            files["config-file"] = path
            values, mistakes = parse_config_file(_content(path, "CONFIG_FILE"), path)
    except UserError as error:
        mistakes = [str(error)]
    if any(map(_is_secret, variables)):
        warnings += _exposed(files["env-file"])
    if any(SETTINGS[name].secret for name in values):
        warnings += _exposed(files["config-file"])
    of_files = Files(variables, values, tuple(mistakes))
    loaded, complaint = load_usable(environ, flags, of_files)
    # An empty variable that is no setting can have a meaning, such as CUDA_VISIBLE_DEVICES.
    environ = {**variables, **environ}
    return Context(
        settings=resolve(
            loaded.settings,
            environ=environ,
            is_dir=os.path.isdir,
            is_writable=lambda folder: os.access(folder, os.W_OK | os.X_OK),
            host_name=socket.gethostname(),
        ),
        sources=loaded.sources,
        environ=environ,
        complaint=complaint,
        warnings=(*loaded.warnings, *warnings),
        files=files,
    )


def _config_path(
    flags: Mapping[str, str], environ: Mapping[str, str], variables: Mapping[str, str]
) -> str:
    if "config_file" in flags:
        return flags["config_file"]
    variable = settings_module.variable("config_file")
    found = (each.get(variable, "").strip().strip("\"'") for each in (environ, variables))
    return next(filter(None, found), "")


def _content(path: str, setting: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{setting}={path} cannot be read: {error.strerror}") from None


def _is_secret(variable: str) -> bool:
    name = variable.lower()
    if name in SETTINGS:
        return SETTINGS[name].secret
    return masking.names_secret(variable)


def _exposed(path: str) -> list[str]:
    from llama_gguf.access.key_file import warn_if_exposed  # most files have no secret

    warning = warn_if_exposed(path)
    return [f"{warning}: it contains a secret"] if warning else []
