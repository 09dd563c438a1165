"""What one llama-server is started with: command line, environment, address."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.devices import Device
from llama_gguf.engines.probe import Finding
from llama_gguf.net.binding import check_socket_path, listen
from llama_gguf.supervisor.child import Child
from llama_gguf.values import Value

ListDevices = Callable[[], Coroutine[None, None, Sequence[Device] | None]]
"""Lists the devices that a start would have now; None if they are unknown."""


async def no_devices() -> None:
    """A ``ListDevices`` for an engine whose devices are unknown, or do not matter."""


HasRoom = Callable[[bool], Coroutine[None, None, bool]]
"""Its argument: whether a running engine has the same file of the model in memory."""


async def no_room(has_same_file: bool) -> bool:
    """A ``HasRoom`` for an engine whose memory is unknown."""
    del has_same_file
    return False


class PromptSource(Value):
    """What the prompts in an engine's slots depend on."""

    files: tuple[str, ...]
    """Of the model, all parts."""
    identity: str
    """Of their content, as the file system knew it before the start: ``model_digest.identity``."""
    build: str
    """Of llama-server."""
    options: tuple[str, ...]
    """As of ``entry.options_of``."""
    ram_bytes: int = 0
    """What its cache in RAM may use."""


class Launch(Value):
    """How llama-server is started."""

    argv: list[str]
    """Without the address."""
    environ: Mapping[str, str]
    model_path: str = ""
    model_bytes: int = 0
    """Of the model's files, to estimate how much is loaded; 0 = unknown."""
    facts: Mapping[str, str | int] = {}
    """Facts about model and engine, for people."""
    sizes: str = ""
    """The settings that decide how much memory it needs, for the advice after a death."""
    list_devices: ListDevices = no_devices
    has_room: HasRoom = no_room
    """Whether a second engine like this one fits beside those that run now."""
    prompts: PromptSource | None = None
    """None if its prompts are not kept."""
    devices: str = ""
    """Its part of the GPUs, for people; empty if they are not divided."""


class Spawn(Protocol):
    """As ``child.spawn``."""

    def __call__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        reads_output: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> Awaitable[Child]: ...


class Looker(Protocol):
    """As ``Probe``."""

    async def look(self) -> Finding: ...


class MakeProbe(Protocol):
    def __call__(self, address: EngineAddress, *, timeout: float) -> Looker: ...


def check_address(address: EngineAddress) -> None:
    """Check that the engine's address is free: another server there would be taken for the engine.

    Raises:
        UserError: it is taken, or llama-server could not listen there.
    """
    if address.socket:
        remove_socket(address.socket)
        check_socket_path(address.socket, "BACKEND_SOCKET")
    else:
        listen(address.host, address.port, "PORT_BACKEND", "BACKEND_HOST").close()


def remove_socket(path: str) -> None:
    """Remove the socket of an earlier engine: the next one could not bind to its path."""
    if path:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
