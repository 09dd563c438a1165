"""llama-server's response head: its properties, and the head that the client receives.

Neither depends on the digits of Content-Length, so that ``known_head.py`` can reuse them.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.http1.fields import Fields, Framing, ResponseFields, find


class ResponseHead:
    """A parsed head: what its status line has, and its fields in their order."""

    __slots__ = ("fields", "reason", "status", "version")

    def __init__(self, status: int, reason: bytes, version: str, fields: Fields) -> None:
        self.status: Final = status
        self.reason: Final = reason
        self.version: Final = version
        self.fields: Final = fields


class Response:
    """The properties of the engine's response that its head determines.

    Args:
        head: parsed; of a final response, not an interim one.
        sorted_fields: its fields, sorted by what they mean for the gateway.
    """

    __slots__ = (
        "framing",
        "has_date",
        "has_length",
        "is_correctable",
        "is_event_stream",
        "is_refusal",
        "keep_alive",
        "opening",
        "retry_after",
        "status",
    )

    def __init__(self, head: ResponseHead, sorted_fields: ResponseFields) -> None:
        self.status = head.status
        self.framing = sorted_fields.framing
        self.has_date = sorted_fields.has_date
        self.has_length = sorted_fields.length is not None and head.status != 204
        self.is_event_stream = sorted_fields.is_event_stream
        self.is_refusal = head.status in (429, 503)
        """The engine did not begin to process the request."""
        self.retry_after = _retry_after(head.fields) if self.is_refusal else None
        self.is_correctable = head.status in (400, 500) and self.framing is Framing.LENGTH
        """It may be an error that ``engine_errors.py`` corrects, if it is not too long."""
        # After a stream, llama-server closes the connection all the same: gateway/pool.py.
        self.keep_alive = (
            sorted_fields.framing is not Framing.CLOSE
            and head.version == "1.1"
            and b"close" not in sorted_fields.connection
        )
        # The client receives the opening, then the fields that the gateway adds.
        self.opening = b"HTTP/1.1 %d %b\r\n%b" % (
            head.status,
            head.reason,
            b"".join(sorted_fields.forwarded),
        )


def _retry_after(fields: Fields) -> float | None:
    """The seconds in Retry-After; None without it, or if it is a date."""
    value = find(fields, b"retry-after") or b""
    return float(value) if value.isdigit() and len(value) < 10 else None
