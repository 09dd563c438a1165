"""Every error that has a name, in two families.

``UserError`` is for the person at the terminal: the message says what is wrong
and what to do next, and the command leaves with ``exit_status``.

``GatewayError`` is for the client of the gateway: it says whose fault it is and
in which phase, and ``core/replies.py`` alone turns it into bytes.
"""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """Something a person can put right.

    Args:
        message: what is wrong and what to do next; may have several lines.
        exit_status: what the command leaves with. 2 means a bad setting or flag.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class GatewayError(Exception):
    """An answer of the gateway's own that is not a success.

    Args:
        message: the sentence in the answer's envelope.
        retry_after: seconds until a retry makes sense; None where none does.
        close: whether the client's connection cannot be used any further.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    should_retry: ClassVar[bool | None] = None
    """What ``x-should-retry`` tells OpenAI's clients; None leaves the choice to them."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.close = close


# The client's fault -------------------------------------------------------------------------


class InvalidRequest(GatewayError):
    """The family of requests that must be changed before they are sent again."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class BadRequest(InvalidRequest):
    """Cannot be parsed, or could be read in two ways. The connection is closed after it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, close=True)


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str, close: bool = False) -> None:
        super().__init__(message, close=close)
        self.allow = allow


class RequestTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class UriTooLong(InvalidRequest):
    status = 414
    code = "uri_too_long"


class ExpectationFailed(InvalidRequest):
    status = 417
    code = "expectation_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message, close=True)  # whether a body will follow is unknown


class HeadTooLarge(InvalidRequest):
    status = 431
    code = "request_header_fields_too_large"


class NotImplementedMethod(InvalidRequest):
    status = 501
    code = "not_implemented"


class Unauthorized(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class KeyExpired(Unauthorized):
    code = "key_expired"


class RouteNotExposed(GatewayError):
    status = 403
    type = "permission_error"
    code = "route_not_exposed"


class Limited(GatewayError):
    """The key is over its rate."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


# Ours or the engine's -----------------------------------------------------------------------


class Shed(GatewayError):
    """No room, or nobody to serve it yet; the same request may succeed a little later."""

    status = 503


class QueueFull(Shed):
    code = "queue_full"


class QueueTimeout(Shed):
    code = "queue_timeout"


class ModelLoading(Shed):
    code = "model_loading"


class BackendUnavailable(Shed):
    code = "backend_unavailable"


class Draining(Shed):
    code = "draining"


class UpstreamError(GatewayError):
    """llama-server refused, left, or spoke nonsense before the head of its answer was complete."""

    status = 502
    code = "backend_error"


class UpstreamTimeout(GatewayError):
    """llama-server kept silent. A retry would only repeat the work, so clients are told not to."""

    status = 504
    type = "timeout_error"
    code = "backend_timeout"
    should_retry = False


class ReloadFailed(GatewayError):
    code = "reload_failed"
