"""What is checked of the system and the settings of `serve` without any file or process.

A start checks this first, so it imports nothing of models.
"""

from __future__ import annotations

import os
import select
import socket
from types import ModuleType
from typing import Final

from llama_gguf.config.schema import ListenSettings, UpstreamSettings
from llama_gguf.config.settings import SETTINGS, Settings, variable
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import extra_args, listen_flags
from llama_gguf.errors import UserError

MAX_PORT: Final = 65535
LIVE_GROUPS: Final = ("model", "engine", "supervision")
"""Their settings can be changed by a rolling restart."""
NEEDED: Final[tuple[tuple[ModuleType, str], ...]] = (
    (select, "epoll"),
    (os, "sched_getaffinity"),
    (socket, "SO_PEERCRED"),
)
"""What `serve` uses of Linux, in addition to proc(5) and prctl(2)."""


def system() -> str:
    """The name of the operating system.

    Raises:
        UserError: `serve` cannot run on it; the message is about the alternatives.
    """
    name = os.uname().sysname
    missing = [f"{module.__name__}.{part}" for module, part in NEEDED if not hasattr(module, part)]
    if missing:
        raise UserError(
            f"`llama-gguf serve` needs Linux; {name} has no {', '.join(missing)}. Run the "
            "container image (on macOS with Docker Desktop or Colima: docs/deployment/docker.md), "
            "or start llama-server yourself and `llama-gguf gateway` in front of it."
        )
    return name


def check(settings: Settings) -> None:
    """Check what needs neither a file nor a process.

    Raises:
        UserError: a setting is invalid.
    """
    extra_args(settings.engine)
    listen_flags(EngineAddress.of(settings.upstream))
    ports(settings.listen, settings.upstream, settings.engine.replicas)


def least_replicas(replicas: int | str) -> int:
    """How many replicas there are at least: the number for ``auto`` is known later."""
    return replicas if isinstance(replicas, int) else 1


def fixed_changes(now: Settings, then: Settings) -> list[str]:
    """The settings that differ, and that a rolling restart does not change."""
    return [
        name
        for name, setting in SETTINGS.items()
        if setting.group not in LIVE_GROUPS
        and now.value(name) != then.value(name)
        # `serve` generates one if there is none.
        and not (name == "backend_api_key" and not then.value(name))
    ]


def ports(
    listen: ListenSettings, upstream: UpstreamSettings, replicas: int | str = 1
) -> dict[str, int]:
    """The ports on which `serve` or its first engine listens, by the setting's name.

    Raises:
        UserError: two are equal, or a replica would have one of them.
    """
    found = {"port": listen.port, "port_health": listen.port_health}
    if not upstream.backend_socket:
        found["port_backend"] = upstream.port_backend
    for port in found.values():
        same = [variable(name) for name, other in found.items() if other == port]
        if len(same) > 1:
            raise UserError(f"{' and '.join(same)} have the same port, {port}: choose another.", 2)
    if not upstream.backend_socket:
        first = upstream.port_backend
        last = first + least_replicas(replicas) - 1
        for name in ("port", "port_health"):
            if first <= found[name] <= last:
                raise UserError(
                    f"{variable(name)}={found[name]} is one of the ports of the replicas, "
                    f"PORT_BACKEND={first} to {last}: choose another.",
                    2,
                )
        if last > MAX_PORT:
            raise UserError(f"PORT_BACKEND={first} leaves no ports for REPLICAS={replicas}.", 2)
    return found
