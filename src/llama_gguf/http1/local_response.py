"""The gateway's own responses, as bytes. The only place that turns an error into bytes.

Errors go out in OpenAI's envelope, on ``/v1/messages`` in Anthropic's. CORS fields
are made here too, since browsers hide a response without them from a script.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

from llama_gguf.errors import GatewayError, MethodNotAllowed, Unauthorized
from llama_gguf.http1.fields import Fields, find
from llama_gguf.http1.routes import Dialect

JSON: Final = b"application/json"


class LocalResponse:
    """One of the gateway's own responses, without the fields that all responses have.

    Args:
        status: its code.
        body: complete.
        content_type: of the body; empty where there is none.
        fields: whole lines.
    """

    __slots__ = ("body", "content_type", "fields", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = b"",
        fields: Sequence[bytes] = (),
    ) -> None:
        self.status: Final = status
        self.body: Final = body
        self.content_type: Final = content_type
        self.fields: Final = fields


_REASONS: Final = {
    200: b"OK",
    204: b"No Content",
    302: b"Found",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
"""Of the statuses that the gateway responds with itself (RFC 9110 section 15, RFC 6585)."""

# Anthropic's error types by status; there are none for other statuses.
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def head(
    status: int, fields: Iterable[bytes], *, length: int | None, content_type: bytes = b""
) -> bytes:
    """The head of one of the gateway's own responses.

    Args:
        status: its code.
        fields: whole lines.
        length: of the body; None while it is unknown.
        content_type: of the body; empty where there is none.
    """
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"")), *fields]
    if content_type:
        lines.append(b"Content-Type: %b\r\n" % content_type)
    if length is not None and status != 204:
        lines.append(b"Content-Length: %d\r\n" % length)
    lines.append(b"\r\n")
    return b"".join(lines)


def envelope(error: GatewayError, dialect: Dialect, *, request_id: str) -> bytes:
    """*error* as the JSON that OpenAI's (or Anthropic's) clients understand."""
    if dialect is not Dialect.ANTHROPIC:
        content = {
            "message": error.message,
            "type": error.type,
            "param": None,
            "code": error.code,
        }
        return json.dumps({"error": content}).encode()
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    type_ = _ANTHROPIC_TYPES.get(error.status, fallback)
    return json.dumps(
        {
            "type": "error",
            "error": {"type": type_, "message": error.message},
            "request_id": request_id,
        }
    ).encode()


def error_fields(error: GatewayError) -> list[bytes]:
    """The header lines for *error*."""
    lines: list[bytes] = []
    if isinstance(error, Unauthorized):
        # RFC 9110 section 15.5.2: a 401 must have a challenge.
        lines.append(b'WWW-Authenticate: Bearer realm="llama-gguf"\r\n')
    if isinstance(error, MethodNotAllowed):
        lines.append(b"Allow: %b\r\n" % error.allow.encode())
    if error.retry_after is not None:
        # Rounded up: otherwise a client that complies retries too early.
        lines.append(b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after)))
        lines.append(b"retry-after-ms: %d\r\n" % max(1, math.ceil(error.retry_after * 1000)))
    if error.should_retry is not None:
        lines.append(b"x-should-retry: %b\r\n" % (b"true" if error.should_retry else b"false"))
    return lines


EVENT_STREAM: Final = b"text/event-stream"
NO_BUFFERING: Final = b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
"""So that proxies pass comments on at once, instead of buffering them until they time out."""
WAITING: Final = b": waiting\n\n"
"""A comment, which clients of event streams ignore.

Source: the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html
"""


class Cors:
    """Cross-origin rules for the configured *origins*; none means that CORS is off.

    Source: the Fetch standard, https://fetch.spec.whatwg.org/#http-cors-protocol
    """

    _EXPOSED: Final = (
        b"Access-Control-Expose-Headers: x-request-id, retry-after, retry-after-ms, "
        b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
        b"x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
        b"x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens\r\n"
    )
    _SANE_NAMES: Final = rb"[A-Za-z0-9_.\-, \t]{1,2048}"
    _METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

    def __init__(self, origins: tuple[str, ...]) -> None:
        self.is_on = bool(origins)
        self._any = "*" in origins
        self._origins = frozenset(o.encode() for o in origins)

    def fields(self, origin: bytes | None) -> bytes:
        """The header lines of every response to a request from *origin*."""
        if not self.is_on:
            return b""
        if self._any:
            return b"Access-Control-Allow-Origin: *\r\n" + self._EXPOSED
        if origin is None or origin not in self._origins:
            return b"Vary: Origin\r\n"
        return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n%b" % (origin, self._EXPOSED)

    def preflight(self, fields: Fields, origin: bytes | None) -> list[bytes]:
        """The header lines of the response to an OPTIONS request."""
        if not self.is_on or find(fields, b"access-control-request-method") is None:
            return [b"Allow: %b\r\n" % self._METHODS]
        if not self._any and origin not in self._origins:
            return []
        lines = [
            b"Access-Control-Allow-Methods: %b\r\n" % self._METHODS,
            b"Access-Control-Max-Age: 86400\r\n",
            b"Vary: Access-Control-Request-Headers\r\n",
        ]
        # Echoed, since clients send fields of all kinds (x-stainless-*, anthropic-*).
        names = find(fields, b"access-control-request-headers")
        if names and re.fullmatch(self._SANE_NAMES, names):
            lines.append(b"Access-Control-Allow-Headers: %b\r\n" % names)
        return lines


def rate_fields(limit: int, remaining: bytes, reset: float) -> bytes:
    """The header lines with a key's limit, remaining requests and reset, by OpenAI's names.

    Args:
        limit: requests per window.
        remaining: digits, or a placeholder for them.
        reset: seconds until the window is empty.
    """
    return (
        b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %b\r\n"
        b"x-ratelimit-reset-requests: %b\r\n" % (limit, remaining, duration_text(reset))
    )


def token_fields(limit: int, remaining: int, reset: float) -> bytes:
    """The header lines with a key's budget of tokens, by OpenAI's names; *reset* in seconds."""
    return (
        b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\n"
        b"x-ratelimit-reset-tokens: %b\r\n" % (limit, remaining, duration_text(reset))
    )


def duration_text(seconds: float) -> bytes:
    """*seconds* as OpenAI writes it in ``x-ratelimit-reset-requests``: 120ms, 7s, 6m0s, 2h0m0s."""
    if seconds <= 0.999:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = math.ceil(seconds)
    if whole < 60:
        return b"%ds" % whole
    if whole < 3600:
        return b"%dm%ds" % divmod(whole, 60)
    return b"%dh%dm%ds" % (whole // 3600, whole // 60 % 60, whole % 60)
