"""A connection to a Redis or Valkey server: the only module that speaks its protocol.

hiredis parses (ADR 0034); this is the Protocol around it. Replies come in the order of calls. A
call whose reply is lost is never sent again here: its caller knows whether that is harmless.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis

from llama_gguf.config.store_address import StoreAddress

if TYPE_CHECKING:
    import ssl

ReplyError: Final = hiredis.ReplyError
"""A reply that is an error."""
CONNECT_SECONDS: Final = 2.0
OnReply = Callable[[Any], None]
"""Gets what the server has replied; a ``hiredis.ReplyError`` is one of its values."""


class StoreError(Exception):
    """The server cannot be used; the message contains the reason, and no secret."""


class StoreConnection(asyncio.Protocol):
    """One connection.

    Args:
        on_message: gets the name in each message of the subscribed channel.
        on_lost: called once, when the connection is lost.
    """

    def __init__(self, on_message: Callable[[str], None], on_lost: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[OnReply] = deque()
        self._transport: asyncio.Transport | None = None
        self._asked: asyncio.Future[Any] | None = None
        """The reply that ``ask`` waits for."""

    # asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOTHING:
                self._on_reply(reply)
        except hiredis.ProtocolError as error:
            self.close(f"the server has sent something else than Redis's protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection was lost ({exc})" if exc else "the server closed the connection")

    # Calls --------------------------------------------------------------------------------------

    def call(self, *words: str | bytes, on_reply: OnReply) -> None:
        """Send a command; *on_reply* is not called if the connection is lost before."""
        if self._transport is not None:
            self._waiting.append(on_reply)
            self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub means one word

    async def ask(self, *words: str | bytes) -> Any:
        """The reply to a command.

        Raises:
            StoreError: it is an error, or the connection is lost.
        """
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(value: Any) -> None:
            if not reply.done():
                reply.set_result(value)

        self._asked = reply
        self.call(*words, on_reply=settle)
        if self._transport is None:
            settle(StoreError("the server closed the connection"))
        value = await reply
        if isinstance(value, StoreError):
            raise value
        if isinstance(value, hiredis.ReplyError):
            raise StoreError(f"{words[0]!s}: {value}")
        return value

    def close(self, reason: str = "") -> None:
        """Cut the connection; *reason* is what ``on_lost`` gets."""
        transport = self._transport
        self._end(reason)
        if transport is not None:
            transport.abort()

    def _end(self, reason: str) -> None:
        if self._transport is None:
            return
        self._transport = None
        self._waiting.clear()
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(StoreError(reason))
        self._on_lost(reason)

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            if len(reply) == 3 and reply[0] == b"message":
                self._on_message(text_of(reply[2]))
            elif self._waiting and reply[0] == b"subscribe":
                self._waiting.popleft()(reply)
        elif self._waiting:
            self._waiting.popleft()(reply)


class _Nothing:
    pass


_NOTHING: Final = _Nothing()


class Greeting:
    """What a server reports about itself.

    Args:
        reply: to HELLO.
    """

    def __init__(self, reply: dict[bytes, Any]) -> None:
        self.version = text_of(reply.get(b"version"))
        self.server = text_of(reply.get(b"server")) or "redis"
        self.mode = text_of(reply.get(b"mode")) or "standalone"
        self.role = text_of(reply.get(b"role")) or "master"

    def __str__(self) -> str:
        return f"{self.server.capitalize()} {self.version}"


def text_of(value: object) -> str:
    """What the server has sent, as text; empty if it is none."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else ""


async def connect(
    address: StoreAddress,
    context: ssl.SSLContext | None,
    on_message: Callable[[str], None],
    on_lost: Callable[[str], None],
    *,
    seconds: float = CONNECT_SECONDS,
) -> tuple[StoreConnection, Greeting]:
    """A connection that is logged in and has its database.

    Args:
        address: of the server.
        context: that verifies its certificate; None without TLS.
        on_message: as of ``StoreConnection``.
        on_lost: as of ``StoreConnection``; also called if this fails.
        seconds: for all of it.

    Raises:
        StoreError: it cannot be made.
    """
    loop = asyncio.get_running_loop()
    connection = StoreConnection(on_message, on_lost)
    greeting: Greeting | None = None
    try:
        async with asyncio.timeout(seconds):
            if address.path:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=context
                )
            greeting = await _greet(connection, address)
            return connection, greeting
    except TimeoutError:
        reason = f"no response within {seconds:g} seconds"
        if context is not None:  # a server without it waits for the end of the first line
            reason += "; if it has no TLS, its address begins with redis://"
    except OSError as error:
        reason = _why(error, address)
    finally:
        if greeting is None:
            connection.close()
    raise StoreError(reason)


def _why(error: OSError, address: StoreAddress) -> str:
    """Why *address* cannot be connected to."""
    if address.has_tls:
        import ssl  # noqa: PLC0415  # most stores have no TLS

        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):  # its errno is one of OpenSSL's
            return f"TLS cannot be used: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return f"{address.host} is not found: {error.strerror}"
    return os.strerror(error.errno) if error.errno else str(error)  # asyncio has its own words


async def _greet(connection: StoreConnection, address: StoreAddress) -> Greeting:
    words = ["HELLO", "3"]
    if address.password:
        words += ["AUTH", address.user or "default", address.password]
    try:
        reply = await connection.ask(*words)
    except StoreError as error:
        raise StoreError(_explained(str(error), address.password)) from None
    if not isinstance(reply, dict):  # a proxy of another protocol, or any program that replies
        raise StoreError("the server does not reply to HELLO as Redis does")
    greeting = Greeting(reply)
    if greeting.mode == "cluster":
        raise StoreError("the server is a node of a cluster, which is not supported")
    if greeting.mode == "sentinel":
        raise StoreError("the server is a Sentinel; set the address of the server itself")
    if greeting.role in ("slave", "replica"):
        raise StoreError("the server is a replica, which cannot be written to")
    if address.database:
        await connection.ask("SELECT", str(address.database))
    return greeting


def _explained(error: str, password: str) -> str:
    """Why a server refuses HELLO."""
    if "unknown command" in error.lower() or "NOPROTO" in error:
        return "the server is older than Redis 6"
    if "NOAUTH" in error:
        return "it requires a password (NOAUTH)"
    if password and password in error:  # some repeat what they do not know
        return "the server does not accept HELLO with a password"
    return error
