"""Where the engines come from that the gateway may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llama_gguf.engines.address import EngineAddress


class EngineSource(Protocol):
    """Knows the addresses of engines, which may come and go."""

    on_change: Callable[[], None]
    """Set by its user; called after each change of ``addresses``."""

    @property
    def addresses(self) -> tuple[EngineAddress, ...]: ...


class StaticSource:
    """Engines at addresses that do not change.

    Args:
        addresses: from the settings.
    """

    def __init__(self, *addresses: EngineAddress) -> None:
        self.addresses = addresses
        self.on_change: Callable[[], None] = _ignore


def _ignore() -> None:
    """They do not change."""
