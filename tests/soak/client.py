"""A client with one connection: sends bytes, parses responses, and closes in several ways."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from contextlib import suppress
from typing import Final, Self

from tests.support.keys import KEY
from tests.support.messages import End, Response, take_response

_NO_PORT_YET: Final = 24
"""IP_BIND_ADDRESS_NO_PORT, ip(7): the port is chosen when connecting, and may be shared."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = bytearray()
        self.has_ended = False
        """The gateway has closed the connection, without a reset."""
        self.was_reset = False

    @classmethod
    async def connect(
        cls,
        port: int,
        *,
        buffer_bytes: int = 1 << 16,
        source: str = "",
        trust: ssl.SSLContext | None = None,
    ) -> Self:
        """Connect to the gateway.

        Args:
            port: of the gateway.
            buffer_bytes: of the kernel's receive buffer and of the reader's.
            source: the client's address; empty lets the kernel choose.
            trust: for TLS; None = plain HTTP.
        """
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            if source:
                sock.setsockopt(socket.IPPROTO_IP, _NO_PORT_YET, 1)
                sock.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        name = "127.0.0.1" if trust else None
        return cls(
            *await asyncio.open_connection(
                sock=sock, limit=buffer_bytes, ssl=trust, server_hostname=name
            )
        )

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._writer.is_closing()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def sent(self) -> None:
        """Wait until most data has been sent, or the connection is closed."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> bool:
        """Read once; False at the end."""
        try:
            data = await self._reader.read(1 << 16)
        except ConnectionError:
            self.was_reset = True
            return False
        self.received += data
        self.has_ended = not data
        return bool(data)

    async def read_until(self, ending: bytes) -> bool:
        """Read until *ending* has arrived; False if the connection ends before it."""
        searched = 0
        while self.received.find(ending, searched) < 0:
            searched = max(0, len(self.received) - len(ending))
            if not await self.receive():
                return False
        return True

    async def read_response(self, *, is_head_request: bool = False) -> Response | None:
        """The next final response, incomplete if the connection ends first; None without a head."""
        while True:
            found = take_response(
                bytes(self.received), is_head_request=is_head_request, has_ended=self.has_ended
            )
            is_over = self.has_ended or self.was_reset
            if found is not None and (found[0].end is not End.OPEN or is_over):
                self.received = bytearray(found[1])
                return found[0]
            if is_over:
                return None
            await self.receive()

    async def read_rest(self) -> None:
        """Read up to the end of the connection."""
        while await self.receive():
            pass

    async def disconnect(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Reset the connection: data that has not been read is discarded."""
        sock: socket.socket | None = self._writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:  # else it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()

    async def reset(self) -> None:
        self.abort()
        await self.disconnect()

    async def close_half(self) -> None:
        """Half-close the connection, which the gateway treats as a disconnect."""
        self._writer.write_eof()
        await self.read_rest()
        await self.disconnect()


def chunked(body: bytes, size: int) -> bytes:
    """*body* in chunks of *size*."""
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


CHUNKED: Final = "Transfer-Encoding: chunked"
SLOWED_KEY: Final = "sk-slow-0123456789ab"
KEYS: Final = f"alice:{KEY}\nslow:{SLOWED_KEY}:60\n"
