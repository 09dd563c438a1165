"""What a request needs of its client's connection.

A native base class, and no ``typing.Protocol``, since a request calls it some ten times and mypyc
would go through the interpreter for each.
"""

from __future__ import annotations

from typing import Protocol

from llama_gguf.access.authenticator import Principal
from llama_gguf.errors import GatewayError
from llama_gguf.gateway.head_cache import Known
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.request import Request
from llama_gguf.net.transport import Receiver, Transport
from llama_gguf.scheduling.exchange import Exchange


class BodyReader(Protocol):
    """The request, while its body arrives. Called once a read, and only for bodies in pieces."""

    def on_body_grown(self, size: int) -> None:
        """*size* bytes have arrived. Raises GatewayError where the body is refused."""
        ...

    def on_body(self, body: bytearray) -> None:
        """All of it has arrived."""
        ...


class Client(Receiver):
    """See ``client_connection.py``, which implements it."""

    __slots__ = (
        "is_write_paused",
        "keep_alive",
        "known",
        "network",
        "transport",
    )

    def __init__(self, known: Known) -> None:
        self.transport: Transport
        self.network = "-"
        """What counts as one address when it tries wrong keys."""
        self.is_write_paused = False
        self.keep_alive = False
        """Whether the connection stays open after the present response."""
        self.known = known
        """The last head: a connection mostly repeats it."""

    def authenticate(self, exchange: Exchange) -> Principal:
        """Find out whose key the request shows, and whether that may be used for it.

        Raises:
            GatewayError: as ``Authenticator.authenticate`` and ``check_scope`` do.
        """
        raise NotImplementedError

    def expect_body(self, reader: BodyReader, head: Request) -> bytearray | None:
        """Read the rest of a body. Returns it if it is whole; else *reader* gets it once it is."""
        raise NotImplementedError

    def settle_body(self, request: Request) -> None:
        """Skip the rest of an unread body, if it is short; else close after the response."""
        raise NotImplementedError

    def common_lines(self, exchange: Exchange) -> list[bytes]:
        """The header lines of every response whose head is made by the gateway."""
        raise NotImplementedError

    def respond(self, exchange: Exchange, response: LocalResponse) -> None:
        """Send a response of the gateway's own."""
        raise NotImplementedError

    def respond_error(self, exchange: Exchange, error: GatewayError) -> None:
        """Send *error* in the envelope of the request's dialect."""
        raise NotImplementedError

    def finish(self, exchange: Exchange) -> None:
        """The response has been sent whole: wait for the next request, or close the connection."""
        raise NotImplementedError

    def break_off(self, exchange: Exchange, error: GatewayError, event: bytes) -> None:
        """End a response that is not whole, after *event* where one may be sent."""
        raise NotImplementedError

    def check_reader(self) -> None:
        """Reset the connection if the client has taken nothing since the last call."""
        raise NotImplementedError

    def on_bug(self) -> None:
        """Cut this connection alone; its request gives back what it held when it is lost."""
        raise NotImplementedError
