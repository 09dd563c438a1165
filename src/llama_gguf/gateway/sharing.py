"""The store of shared limits, if the gateway has one; without, none of its modules is loaded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llama_gguf.config.schema import SharedLimitSettings
from llama_gguf.net.clock import Clock

if TYPE_CHECKING:
    from llama_gguf.gateway.shared_store import SharedStore


def shared_store_of(
    settings: SharedLimitSettings, loop: asyncio.AbstractEventLoop, clock: Clock
) -> SharedStore | None:
    """The store of SHARED_LIMITS; None if it is not set.

    Raises:
        UserError: the packages of the extra are missing.
    """
    if not settings.shared_limits:
        return None
    from llama_gguf.net import store_checks  # noqa: PLC0415

    store_checks.check(settings)
    from llama_gguf.gateway.shared_store import SharedStore  # noqa: PLC0415

    return SharedStore(settings, loop, clock)
