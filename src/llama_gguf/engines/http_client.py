"""One request to an engine and its response, on a separate connection.

For our own requests, which are few. Those of clients never pass here.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import closing
from typing import TYPE_CHECKING, Final

from llama_gguf.engines.address import EngineAddress

if TYPE_CHECKING:
    import ssl

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r\n", re.IGNORECASE)


async def send(
    address: EngineAddress, request: bytes, *, tls: ssl.SSLContext | None = None
) -> tuple[int, bytes]:
    """Send *request*, an HTTP/1.0 message, and return the status and body of the response.

    Args:
        address: of the engine.
        request: head and body.
        tls: verifies the certificate of one with ``has_tls``.

    Raises:
        FAILURES of ``net/streams.py``: there was no response, or one that is not HTTP.
    """
    if address.socket:
        reader, writer = await asyncio.open_unix_connection(address.socket)
    else:
        reader, writer = await asyncio.open_connection(
            address.host,
            address.port,
            ssl=tls if address.has_tls else None,
            server_hostname=address.server_name if address.has_tls else None,
        )
    with closing(writer):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        # Not every peer closes as requested, so the length takes precedence.
        body = await (reader.readexactly(int(length[1])) if length else reader.read())
    status = _STATUS.match(head)
    if status is None:
        raise ValueError("not HTTP")
    return int(status[1]), body
