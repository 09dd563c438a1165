"""Whether the server of SHARED_LIMITS can be used, for `check`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.config.schema import SharedLimitSettings
from llama_gguf.config.store_address import StoreAddress
from llama_gguf.errors import UserError
from llama_gguf.net import store_checks

if TYPE_CHECKING:
    from llama_gguf.net.store_connection import Greeting

SUBJECT: Final = "shared limits"
REPLY_SECONDS: Final = 2.0
_TRIAL: Final = "return redis.call('SET', KEYS[1], '1', 'PX', '1000')"
_KEY: Final = "llama-gguf:check"


def look(settings: SharedLimitSettings) -> Result:
    """The server and its version, or why it cannot be used."""
    if not settings.shared_limits:
        return Result(SUBJECT, "off: limits are those of this gateway alone")
    try:
        store_checks.check(settings)
    except UserError as error:
        return Result(SUBJECT, str(error), Level.WRONG)
    from llama_gguf.net.store_connection import StoreError

    address = StoreAddress.of(settings.shared_limits)
    try:
        greeting = asyncio.run(_try(settings, address))
    except StoreError as error:
        text = (
            f"{address} cannot be used: {error}. Until it can, "
            f"SHARED_LIMITS_OUTAGE={settings.shared_limits_outage} applies"
        )
        return Result(SUBJECT, text, Level.NOTE)
    return Result(SUBJECT, f"{greeting} at {address}")


async def _try(settings: SharedLimitSettings, address: StoreAddress) -> Greeting:
    """Connect, run a script that writes, and subscribe, as the gateway does."""
    from llama_gguf.net.store_connection import StoreError, connect

    context = store_checks.context_of(settings)
    connection, greeting = await connect(address, context, _ignore, _ignore)
    try:
        async with asyncio.timeout(REPLY_SECONDS):
            await connection.ask("EVAL", _TRIAL, "1", _KEY)
            await connection.ask("SUBSCRIBE", f"llama-gguf:{address.database}:check")
    except TimeoutError:
        raise StoreError(f"no reply within {REPLY_SECONDS:g} seconds") from None
    finally:
        connection.close()
    return greeting


def _ignore(_: str) -> None:
    pass
