"""A request's head: its properties, and the head that is forwarded to llama-server.

Neither depends on the digits of Content-Length, so that ``known_head.py`` can reuse them.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.http1.fields import Fields, RequestFields, find
from llama_gguf.http1.routes import Dialect, Kind, Route
from llama_gguf.memo import BoundedMemo

_NO_BODY: Final = (b"GET", b"HEAD", b"DELETE", b"OPTIONS")
"""Methods that need no Content-Length of 0 (RFC 9110 section 8.6)."""


def _length_line(length: int) -> bytes:
    return b"Content-Length: %d\r\n" % length


LENGTH_LINES: Final = BoundedMemo(_length_line, max_entries=4096)
"""Length -> its header line."""


class RequestHead:
    """A parsed head.

    Args:
        method: as received.
        target: in origin form: path and query. ``*`` only with OPTIONS.
        path: without the query.
        version: of HTTP, as ``1.1``.
        fields: in the order of the head.
    """

    __slots__ = ("fields", "method", "method_text", "path", "path_text", "target", "version")

    def __init__(
        self, method: bytes, target: bytes, path: bytes, version: str, fields: Fields
    ) -> None:
        self.method: Final = method
        self.method_text: Final = method.decode("ascii")
        self.target: Final = target
        self.path: Final = path
        self.path_text: Final = path.decode("latin-1")
        self.version: Final = version
        self.fields: Final = fields


class Request:
    """The properties of a request that its head determines.

    Args:
        head: parsed.
        cors: header lines of the response, for the request's origin.
        sorted_fields: its fields, sorted by what they mean for the gateway.
        route: by its method and path.
        via: the gateway's pseudonym in ``Via``.
    """

    __slots__ = (
        "cors",
        "head",
        "is_chunked",
        "is_head_request",
        "is_idempotent",
        "keep_alive",
        "line",
        "middle",
        "opening",
        "reads_chunks",
        "request_id",
        "route",
        "sends_length",
        "session",
        "sorted_fields",
    )

    def __init__(
        self,
        head: RequestHead,
        *,
        cors: bytes,
        sorted_fields: RequestFields | None = None,
        route: Route | None = None,
        via: bytes = b"",
    ) -> None:
        self.head = head
        self.cors = cors
        self.sorted_fields = found = sorted_fields or RequestFields()
        self.route = route or _NO_ROUTE
        self.request_id = found.request_id
        self.session = found.session
        self.is_chunked = found.is_chunked
        self.is_head_request = head.method == b"HEAD"
        # RFC 9110 section 9.2.2; of the idempotent methods, only the safe ones.
        self.is_idempotent = head.method in (b"GET", b"HEAD")
        self.reads_chunks = head.version == "1.1"
        """False for HTTP/1.0, whose clients get a chunked body decoded."""
        self.keep_alive = self.reads_chunks and b"close" not in found.connection
        self.sends_length = (
            self.is_chunked or found.content_length is not None or head.method not in _NO_BODY
        )
        """Whether the engine receives a Content-Length even if there is no body."""
        # The head for an engine consists of line, header lines of the engine's address, opening,
        # request id, middle, and Content-Length, if it has one.
        self.line = b"%b %b HTTP/1.1\r\n" % (head.method, head.target)
        self.opening = b"%bx-request-id: " % b"".join(found.forwarded)
        self.middle = b"\r\nVia: %b %b\r\n" % (head.version.encode("ascii"), via)

    def serialised(self, address: bytes, request_id: bytes, body: bytes | bytearray) -> bytes:
        """The request as forwarded to an engine.

        Args:
            address: the header lines for this engine.
            request_id: of this request.
            body: complete.
        """
        length = LENGTH_LINES[len(body)] if body or self.sends_length else b""
        return b"".join(
            (self.line, address, self.opening, request_id, self.middle, length, b"\r\n", body)
        )


def is_from_anthropic(request: Request) -> bool:
    """Whether a client of Anthropic sent it, which matters where the path does not show that.

    Source: https://docs.anthropic.com/en/api/versioning.
    """
    return find(request.head.fields, b"anthropic-version") is not None


def error_dialect(request: Request) -> Dialect:
    """In which the client reads an error that is not an event of a stream."""
    return Dialect.ANTHROPIC if is_from_anthropic(request) else request.route.dialect


_NO_ROUTE: Final = Route(Kind.REFUSED, "refused")


def unread(cors: bytes) -> Request:
    """Stands for a request whose head cannot be parsed."""
    return Request(RequestHead(b"-", b"-", b"-", "1.1", []), cors=cors)
