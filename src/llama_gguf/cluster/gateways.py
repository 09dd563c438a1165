"""The connections of gateways to the controller; ``engines/roster.py`` has the messages."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Callable
from typing import Any, Final

from llama_gguf.cluster.controller import Controller
from llama_gguf.engines import roster
from llama_gguf.engines.roster import Hello
from llama_gguf.events import EventLog
from llama_gguf.net.streams import FAILURES

_log: Final = EventLog(__name__)

HELLO_SECONDS: Final = 5.0
MAX_GATEWAYS: Final = 256
MAX_STRANGERS: Final = 64
MAX_WAITING_BYTES: Final = 256 << 10
"""In the direction of a gateway that does not read; it is cut then."""
_WRONG_KEY: Final = "BACKEND_API_KEY is not the one that `llama-gguf ray up` was given"


class _Gateway:
    """One connection."""

    def __init__(self, writer: asyncio.StreamWriter, version: str) -> None:
        self.writer = writer
        self.version = version
        name = writer.get_extra_info("peername")
        self.address = str(name[0]) if name else ""


class GatewayServer:
    """Keeps gateways informed, and the controller of what they need.

    Args:
        controller: whose roster is sent.
        key: that gateways have to know.
    """

    def __init__(self, controller: Callable[[], Controller], key: str) -> None:
        self._controller = controller
        self._key = key
        self._gateways: set[_Gateway] = set()
        self._strangers = 0
        """Connections that have not proved yet that they know the key."""
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(
            self._serve, host, port, limit=roster.MAX_LINE_BYTES
        )

    def close(self) -> None:
        """Stop listening, and close all connections."""
        if self._server is not None:
            self._server.close()
        for gateway in self._gateways:
            gateway.writer.close()

    def send_roster(self) -> None:
        """Send the roster to all gateways: it has changed, or it is time to repeat it."""
        line = roster.to_line(self._controller().roster)
        for gateway in tuple(self._gateways):
            transport = gateway.writer.transport
            if transport.get_write_buffer_size() > MAX_WAITING_BYTES:
                transport.abort()
            else:
                gateway.writer.write(line)

    def facts(self) -> list[dict[str, Any]]:
        """The gateways, for people."""
        return [{"address": each.address, "version": each.version} for each in self._gateways]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(*FAILURES):
            if self._strangers >= MAX_STRANGERS:
                return
            self._strangers += 1
            try:
                async with asyncio.timeout(HELLO_SECONDS):
                    hello = roster.read_hello(await reader.readuntil(b"\n"))
            finally:
                self._strangers -= 1
            if refusal := self._refusal(hello):
                writer.write(roster.refusal(refusal))
                await writer.drain()
                return
            await self._follow(_Gateway(writer, hello.version), reader)

    def _refusal(self, hello: Hello) -> str:
        if not hmac.compare_digest(hello.key.encode(), self._key.encode()):
            _log.warning("gateway_refused", "A gateway was refused: {reason}", reason=_WRONG_KEY)
            return _WRONG_KEY
        if len(self._gateways) >= MAX_GATEWAYS:
            return f"there are {MAX_GATEWAYS} gateways already"
        return ""

    async def _follow(self, gateway: _Gateway, reader: asyncio.StreamReader) -> None:
        controller = self._controller()
        self._gateways.add(gateway)
        controller.on_gateway(gateway)
        gateway.writer.write(roster.to_line(controller.roster))
        try:
            while True:
                async with asyncio.timeout(roster.SILENT_SECONDS):
                    line = await reader.readuntil(b"\n")
                controller.on_gateway(gateway, roster.read_demand(line))
        finally:
            self._gateways.discard(gateway)
            controller.on_gateway_gone(gateway)
