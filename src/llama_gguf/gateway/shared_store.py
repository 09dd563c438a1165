"""Keeps the limits and the usage of this gateway's keys in step with those of other gateways.

No request waits for anything here: requests are decided by shares (``access/share.py``), and this
renews them. One connection, one call at a time: of the limits as soon as something was used, and of
all that has changed, and of the usage, every second. A server that does not respond
within ``REPLY_SECONDS`` counts as lost, even if its connection is open.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.access.rate_limit import RateLimiter
from llama_gguf.access.share import CLOSED, OUTAGE_POLICIES, Share, StoreState
from llama_gguf.access.shared_limits import (
    EXPIRY_SECONDS,
    KEPT_SECONDS,
    RATE,
    RATE_SECONDS,
    SharedLimits,
    digest_in,
    digest_of,
    window_name,
)
from llama_gguf.access.shared_rate import SharedRate
from llama_gguf.access.token_budget import (
    MINUTE_SECONDS,
    NAMES,
    TOKENS_PER_MINUTE,
    has_budget,
    period_of,
)
from llama_gguf.config.schema import SharedLimitSettings
from llama_gguf.config.store_address import StoreAddress
from llama_gguf.errors import LimitsUnavailable
from llama_gguf.events import EventLog
from llama_gguf.net.clock import Clock
from llama_gguf.net.store_checks import context_of
from llama_gguf.net.store_connection import (
    CONNECT_SECONDS,
    Greeting,
    ReplyError,
    StoreConnection,
    StoreError,
    connect,
    text_of,
)
from llama_gguf.telemetry.gauges import SharedLimitGauges
from llama_gguf.telemetry.shared_usage import SharedUsage
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    from llama_gguf.access.authenticator import Authenticator

_log: Final = EventLog(__name__)

REPLY_SECONDS: Final = 0.5
PULSE_SECONDS: Final = 1.0
REST_SECONDS: Final = 0.005
"""Between two calls, unless a share is used up: what is used meanwhile is sent together."""
LONGEST_REST_SECONDS: Final = 0.5
FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 2.0
START_SECONDS: Final = 1.0
"""That a gateway waits for the server before it listens."""
CLOSED_RETRY_SECONDS: Final = 5.0
KEYS_PER_TURN: Final = 200
"""Some 0.5 ms of work."""


def script(package: str, name: str) -> str:
    """The text of a script in *package*."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


class SharedStore:
    """Of one gateway.

    Args:
        settings: with an address.
        loop: of the gateway.
        clock: of the gateway.
    """

    def __init__(
        self, settings: SharedLimitSettings, loop: asyncio.AbstractEventLoop, clock: Clock
    ) -> None:
        self.address = StoreAddress.of(settings.shared_limits)
        self._context = context_of(settings)
        self._loop = loop
        self._clock = clock
        outage = OUTAGE_POLICIES[settings.shared_limits_outage]
        self.state = StoreState(outage, clock.steady_offset)
        self.state.wake = self._wake
        self._policy = settings.shared_limits_outage
        gateway_id = secrets.token_hex(8)
        channel = f"llama-gguf:{self.address.database}:recall"
        self.limits = SharedLimits(self.state, gateway_id, channel, self._find)
        self.usage = SharedUsage(gateway_id, digest_of, wall_now())
        self._authenticator: Authenticator | None = None
        self._ids: dict[str, str] = {}
        """Of keys, by digest."""
        self._connection: StoreConnection | None = None
        self._lost: asyncio.Event | None = None
        self._first = asyncio.Event()
        """Whether there was a reply, or an error."""
        self.greeting: Greeting | None = None
        self.outages = 0
        self._reason = ""
        """Why the server cannot be reached, as far as it is logged."""
        self._was_used = False
        self._is_calling = False
        self._is_reading_usage = False
        self._next: asyncio.TimerHandle | asyncio.Handle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._hashes: dict[str, str] = {}
        self._texts = {
            "limits": script("llama_gguf.access", "shared_limits.lua"),
            "usage": script("llama_gguf.telemetry", "shared_usage.lua"),
        }

    def check_closed(self) -> None:
        """Check that requests are decided at all.

        Raises:
            LimitsUnavailable: the server cannot be reached, and SHARED_LIMITS_OUTAGE is closed.
        """
        if not self.state.is_up and self.state.outage == CLOSED:
            raise LimitsUnavailable(
                "The limits of this API key cannot be checked at present.",
                retry_after=CLOSED_RETRY_SECONDS,
            )

    def gauges(self) -> SharedLimitGauges:
        """For the metrics."""
        state = self.state
        return SharedLimitGauges(state.is_up, state.gateways, self.outages, state.local_decisions)

    def facts(self) -> dict[str, object]:
        """For /health, which needs no key."""
        return {"up": self.state.is_up, "gateways": self.state.gateways}

    # Limits of keys -----------------------------------------------------------------------------

    def new_limiter(self, key_id: str, limit: int) -> RateLimiter:
        """The limiter of a key: a ``NewLimiter``."""
        share = self.limits.share(
            window_name(digest_of(key_id), RATE),
            limit=limit,
            length=RATE_SECONDS,
            kept_seconds=KEPT_SECONDS,
            counts={},
        )
        return SharedRate(limit, share)

    def new_share(self, key_id: str, window: int, limit: int, counts: dict[int, int]) -> Share:
        """The share of a window of a budget: a ``NewShare``."""
        slides = window == TOKENS_PER_MINUTE
        share = self.limits.share(
            window_name(digest_of(key_id), NAMES[window]),
            limit=limit,
            length=MINUTE_SECONDS if slides else 0,
            kept_seconds=KEPT_SECONDS if slides else EXPIRY_SECONDS[window],
            counts=counts,
        )
        share.period = 0 if slides else period_of(window, self._clock.limits_wall())
        return share

    def _find(self, name: str) -> bool:
        """Make the share of the window *name*, if its key is known here."""
        key_id = self._ids.get(digest_in(name))
        if key_id is None or self._authenticator is None:
            return False
        self._authenticator.named(key_id)
        return self.limits.has(name)

    async def follow_keys(self, authenticator: Authenticator) -> None:
        """Know all keys by their digests, and share their budgets and what has changed of them."""
        self._authenticator = authenticator
        ring = None
        while True:
            if authenticator.ring is not ring:
                ring = authenticator.ring
                ids = {digest_of("-"): "-"}
                for number, key in enumerate(ring.keys):
                    if not number % KEYS_PER_TURN:
                        await asyncio.sleep(0)
                    digest = digest_of(key.key_id)
                    ids[digest] = key.key_id
                    rate = window_name(digest, RATE)
                    if has_budget(key.attributes) or self.limits.has(rate):
                        principal = authenticator.named(key.key_id)
                        if principal is not None and principal.limiter is not None:
                            self.limits.change_limit(rate, principal.limiter.limit)
                self._ids = ids
                self.limits.keep_only(ids)
                self.usage.look_again()
                self._read_usage()
            await asyncio.sleep(PULSE_SECONDS)

    # The connection -----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Stay connected, until cancelled."""
        wait = FIRST_RETRY_SECONDS
        pulsing = self._loop.create_task(self._pulse(), name="pulse of the shared limits")
        try:
            while True:
                try:
                    if await self._stay_connected():
                        wait = FIRST_RETRY_SECONDS
                except StoreError as error:
                    self._note_outage(str(error))
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_RETRY_SECONDS)
        finally:
            pulsing.cancel()

    async def wait_for_first(self) -> None:
        """Wait for the first reply of the server, or its absence: at most ``START_SECONDS``."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._first.wait()
        except TimeoutError:
            pass

    async def _stay_connected(self) -> bool:
        """Connect, and wait until the connection is lost. Returns whether it was of use."""
        lost = self._lost = asyncio.Event()
        connection, greeting = await connect(
            self.address, self._context, self.limits.on_recall, partial(self._on_lost, lost)
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._prepare(connection)
        except (StoreError, TimeoutError) as error:
            connection.close()
            raise StoreError(
                str(error) or f"no response within {CONNECT_SECONDS:g} seconds"
            ) from None
        if lost.is_set():  # together with the last reply
            raise StoreError("the server closed the connection")
        self.greeting = greeting
        self._connection = connection
        self._was_used = False
        self.limits.pulse()
        self._call()
        await lost.wait()
        return self._was_used

    async def _prepare(self, connection: StoreConnection) -> None:
        """Load the scripts, and listen for recalls.

        Raises:
            StoreError: the server refuses it, or the connection is lost.
        """
        for name, text in self._texts.items():
            self._hashes[name] = text_of(await connection.ask("SCRIPT", "LOAD", text))
        await connection.ask("SUBSCRIBE", self.limits.channel)

    def _on_lost(self, lost: asyncio.Event, reason: str) -> None:
        lost.set()
        if lost is not self._lost or self._connection is None:
            return
        self._connection = None
        self._is_calling = self._is_reading_usage = False
        if self._overdue is not None:
            self._overdue.cancel()
        self._note_outage(reason)

    def _note_outage(self, reason: str) -> None:
        was_up = self.state.is_up
        self.limits.on_lost()
        self._first.set()
        if was_up:
            self.outages += 1
        if was_up or reason != self._reason:
            self._reason = reason
            _log.warning(
                "shared_limits_lost",
                "The server of SHARED_LIMITS, {server}, cannot be used: {reason}. Until it can, "
                "SHARED_LIMITS_OUTAGE={policy} applies",
                server=str(self.address),
                reason=reason,
                policy=self._policy,
            )

    def _note_up(self) -> None:
        self._reason = ""
        self._was_used = True
        self._first.set()
        _log.info(
            "shared_limits_connected",
            "The gateway shares the limits of keys with others by {version} at {server}",
            version=str(self.greeting),
            server=str(self.address),
        )

    # Calls --------------------------------------------------------------------------------------

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            self.limits.pulse()
            self._call()
            self._read_usage()

    def _wake(self) -> None:
        """Something is to be sent: soon, or at once if a share is used up."""
        if self._is_calling or self._connection is None:
            return
        if self.state.is_urgent:
            if self._next is not None:
                self._next.cancel()
            self._next = self._loop.call_soon(self._call)
        elif self._next is None:
            self._next = self._loop.call_later(REST_SECONDS, self._call)

    def _call(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        connection = self._connection
        if self._is_calling or connection is None:
            return
        call = self.limits.next_call()
        if call is None:
            return
        self._is_calling = True
        sent_at = self._clock.now()
        on_reply = partial(self._on_reply, connection, call, sent_at)
        connection.call(*self._words("limits", call.keys, call.arguments), on_reply=on_reply)
        self._overdue = self._loop.call_later(REPLY_SECONDS, self._on_overdue, connection)

    def _words(self, name: str, keys: Iterable[str], arguments: list[str]) -> list[str]:
        """The command that runs a script."""
        keys = list(keys)
        return ["EVALSHA", self._hashes[name], str(len(keys)), *keys, *arguments]

    def _on_overdue(self, connection: StoreConnection) -> None:
        connection.close(f"no reply within {REPLY_SECONDS:g} seconds")

    def _on_reply(self, connection: StoreConnection, call: Any, sent_at: float, reply: Any) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
        self._is_calling = False
        if isinstance(reply, ReplyError):
            # Connecting again loads the scripts again, of which a server that has restarted has
            # none; a server that is full or reads only fails again, and is tried again later.
            connection.close(f"it refuses the call: {reply}")
            return
        was_up = self.state.is_up
        self.limits.on_reply(call, reply, sent_at, self._clock.now())
        self._clock.follow(self.state.offset)
        if not was_up:
            self._note_up()
            self.usage.look_again()  # the server may be another one
            self._read_usage()
        if self.state.is_urgent:
            self._call()
        elif self.limits.is_short:
            wait = min(REST_SECONDS * 2 ** min(self.limits.retries, 10), LONGEST_REST_SECONDS)
            self.limits.retry_short()
            self._next = self._loop.call_later(wait, self._call)
        elif self.limits.is_due:
            self._next = self._loop.call_later(REST_SECONDS, self._call)

    # Usage --------------------------------------------------------------------------------------

    def _read_usage(self) -> None:
        connection = self._connection
        if connection is None or self._is_reading_usage or not self.state.is_up:
            return
        self._is_reading_usage = True
        on_reply = partial(self._on_usage, connection)
        words = self._words("usage", self.usage.keys, self.usage.next_call())
        connection.call(*words, on_reply=on_reply)

    def _on_usage(self, connection: StoreConnection, reply: Any) -> None:
        self._is_reading_usage = False
        if isinstance(reply, ReplyError):
            connection.close(f"it refuses the call: {reply}")
        elif self.usage.on_reply(reply, self._ids.get, self._clock.wall):
            self._read_usage()

    # The end ------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Send the rest, and leave this gateway's shares to the others."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await connection.ask("PING")  # after its reply, none is missing
                while (call := self.limits.next_call(leaves=True)) is not None:
                    await connection.ask(*self._words("limits", call.keys, call.arguments))
                    self.limits.on_left()
                is_sent = False
                while not is_sent:
                    words = self._words("usage", self.usage.keys, self.usage.next_call())
                    reply = await connection.ask(*words)
                    self.usage.on_reply(reply, self._ids.get, self._clock.wall)
                    is_sent = self.usage.is_sent
        except (TimeoutError, StoreError):
            pass  # the others find out that it is gone
        finally:
            connection.close()
