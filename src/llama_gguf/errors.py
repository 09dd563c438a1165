"""Every error that has a name, in two families and a bug.

``UserError`` is for the person at the terminal: the message says what is wrong
and what to do next, and the command leaves with ``exit_status``.

``GatewayError`` is for the client of the gateway: it says whose fault it is and
in which phase, and ``core/replies.py`` alone turns it into bytes.

``IllegalTransition`` is a bug, and never anybody else's fault.
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


def how_to_install(extra: str) -> str:
    """The command that brings what the optional dependency *extra* stands for."""
    return f"pip install 'llama-gguf-inference[{extra}]' (in a clone: '.[{extra}]')"


class IllegalTransition(Exception):
    """A bug of ours: an event that cannot happen in the present state of a state machine."""


class GatewayError(Exception):
    """A bug of ours. Its kinds are every other answer of the gateway's own that is no success.

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


class BadRequest(InvalidRequest):
    """The request cannot be parsed, or could be read in two ways. The connection is closed."""

    code = "bad_request"

    def __init__(self, message: str) -> None:
        super().__init__(message, close=True)


class MethodNotAllowed(InvalidRequest):
    """The path does not answer this method; `Allow` names those it answers."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str, close: bool = False) -> None:
        super().__init__(message, close=close)
        self.allow = allow


class RequestTimeout(InvalidRequest):
    """The head or the body of the request did not come in time."""

    status = 408
    code = "request_timeout"


class PayloadTooLarge(InvalidRequest):
    """The body is over MAX_REQUEST_BODY_SIZE."""

    status = 413
    code = "payload_too_large"


class UriTooLong(InvalidRequest):
    """The request line is over MAX_REQUEST_LINE_SIZE."""

    status = 414
    code = "uri_too_long"


class ExpectationFailed(InvalidRequest):
    """An expectation other than 100-continue."""

    status = 417
    code = "expectation_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message, close=True)  # whether a body will follow is unknown


class HeadTooLarge(InvalidRequest):
    """Header fields over MAX_HEADERS or MAX_HEADER_LINE_SIZE."""

    status = 431
    code = "request_header_fields_too_large"


class Unauthorized(GatewayError):
    """The API key is missing, malformed or unknown: one message for all three."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class KeyExpired(Unauthorized):
    """The API key has expired."""

    code = "key_expired"


class RouteNotExposed(GatewayError):
    """A path of llama-server outside EXPOSED_ROUTES."""

    status = 403
    type = "permission_error"
    code = "route_not_exposed"


class AdminKeyRequired(GatewayError):
    """ADMIN_KEY_IDS names the keys that may do this, and this one is not among them."""

    status = 403
    type = "permission_error"
    code = "admin_key_required"


class Limited(GatewayError):
    """The key is over its rate, or the address has tried too many wrong keys."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class ConcurrencyLimited(Limited):
    """The key has MAX_CONCURRENT_PER_KEY requests here already."""

    code = "concurrency_limit_exceeded"


# Ours or the engine's -----------------------------------------------------------------------


class Shed(GatewayError):
    """No room, or nobody to serve it yet; the same request may succeed a little later."""

    status = 503


class QueueFull(Shed):
    """MAX_QUEUE_SIZE requests, or MAX_BODY_MEMORY bytes of bodies, are waiting already."""

    code = "queue_full"


class QueueTimeout(Shed):
    """No slot came free within MAX_QUEUE_WAIT."""

    code = "queue_timeout"


class ModelLoading(Shed):
    """The model was still loading when MAX_QUEUE_WAIT was over."""

    code = "model_loading"


class BackendUnavailable(Shed):
    """The engine cannot be reached, or was given up."""

    code = "backend_unavailable"


class Draining(Shed):
    """The server is shutting down."""

    code = "draining"


class UpstreamError(GatewayError):
    """llama-server refused, left or spoke nonsense before the head of its answer was complete."""

    status = 502
    code = "backend_error"


class UpstreamRefused(UpstreamError):
    """llama-server did not take the connection: it has nothing of the request."""


class UpstreamTimeout(GatewayError):
    """llama-server was silent for REQUEST_TIMEOUT. Clients are told not to repeat the work."""

    status = 504
    type = "timeout_error"
    code = "backend_timeout"
    should_retry = False


class ReloadFailed(GatewayError):
    """The keys file cannot be read; the keys that were loaded stay in force."""

    code = "reload_failed"
