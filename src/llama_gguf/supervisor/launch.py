"""How llama-server is launched: the command, its environment and its probes."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llama_gguf.config.settings import Settings
from llama_gguf.engines.probe import Finding
from llama_gguf.net.listener import listen
from llama_gguf.supervisor.child import Child


@dataclass(frozen=True, slots=True)
class Launch:
    """How llama-server is started."""

    argv: list[str]
    environ: Mapping[str, str]
    model_bytes: int = 0
    """Of its files, to tell how much is loaded; 0 = unknown."""
    facts: Mapping[str, str | int] = field(default_factory=dict)
    """What people are told of the model and the engine."""


class Spawn(Protocol):
    """As ``child.spawn``."""

    def __call__(
        self, name: str, argv: list[str], *, environ: Mapping[str, str], reads_output: bool
    ) -> Awaitable[Child]: ...


class Looker(Protocol):
    """As ``Probe``."""

    async def look(self) -> Finding: ...


class MakeProbe(Protocol):
    def __call__(self, settings: Settings, *, timeout: float) -> Looker: ...


def check_address(settings: Settings) -> None:
    """Make sure that nobody else is where the engine will be: we would take it for ours.

    Raises:
        UserError: the port is taken.
    """
    if settings.backend_socket:
        remove_socket(settings.backend_socket)
    else:
        listen(settings.backend_host, settings.port_backend, "PORT_BACKEND").close()


def remove_socket(path: str) -> None:
    """Remove a socket that an engine has left behind: the next one could not bind to it."""
    if path:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
