"""All named errors: two families, and one for bugs.

``UserError`` is for the person at the terminal: the message states what is wrong
and what to do next, and the command exits with ``exit_status``.

``GatewayError`` is for the client of the gateway: its type states whose fault it is and
in which phase. Only ``http1/local_response.py`` serialises it.

``IllegalTransition`` is a bug, never the fault of a client or an operator.
"""

from __future__ import annotations

from typing import ClassVar, Final


class UserError(Exception):
    """An error that a person can fix.

    Args:
        message: what is wrong and what to do next; may have several lines.
        exit_status: of the command. 2 means an invalid setting or flag, 1 anything else.
        settings: names of the settings whose values are the cause: the command adds where these
            came from.
    """

    def __init__(
        self, message: str, exit_status: int = 1, *, settings: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.settings = settings


def how_to_install(extra: str) -> str:
    """The command that installs the optional dependencies of *extra*."""
    return f"pip install 'llama-gguf-inference[{extra}]' (in a clone: '.[{extra}]')"


class IllegalTransition(Exception):
    """A bug: an event that cannot happen in the current state of a state machine."""


class GatewayError(Exception):
    """An error response of the gateway. Each subclass that is raised has its own code.

    Args:
        message: the sentence in the response's envelope.
        retry_after: seconds until a retry can succeed; None if no retry is suggested. Every 429 and
            503 has it: without it, some agents never try again, and others do so at once.
        close: whether the client's connection must be closed after the response.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str]
    should_retry: ClassVar[bool | None] = None
    """The value of ``x-should-retry`` for OpenAI's clients; None leaves the choice to them."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.close = close


# The client's fault -------------------------------------------------------------------------


class InvalidRequest(GatewayError):
    """The base of errors about requests that must be changed before they are sent again."""

    status = 400
    type = "invalid_request_error"


class BadRequest(InvalidRequest):
    """The request cannot be parsed or is ambiguous. The connection is closed."""

    code = "bad_request"

    def __init__(self, message: str) -> None:
        super().__init__(message, close=True)


class NotFound(InvalidRequest):
    """Neither the gateway nor llama-server has this path."""

    status = 404
    code = "not_found"


class ModelNotFound(InvalidRequest):
    """`/v1/models/NAME` names a model that is not served."""

    status = 404
    code = "model_not_found"


class InvalidKeyChange(InvalidRequest):
    """A change of the keys file over the dashboard is invalid, or the file cannot be written."""

    code = "invalid_key_change"


class MethodNotAllowed(InvalidRequest):
    """The path does not support this method; `Allow` lists the methods that it supports."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str, close: bool = False) -> None:
        super().__init__(message, close=close)
        self.allow = allow


class RequestTimeout(InvalidRequest):
    """The head or the body of the request did not arrive in time."""

    status = 408
    code = "request_timeout"


class PayloadTooLarge(InvalidRequest):
    """The body exceeds MAX_REQUEST_BODY_SIZE."""

    status = 413
    code = "payload_too_large"


class UriTooLong(InvalidRequest):
    """The request line exceeds MAX_REQUEST_LINE_SIZE."""

    status = 414
    code = "uri_too_long"


class ExpectationFailed(InvalidRequest):
    """The value of `Expect` is not 100-continue."""

    status = 417
    code = "expectation_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message, close=True)  # whether a body will follow is unknown


class HeadTooLarge(InvalidRequest):
    """MAX_HEADERS, MAX_HEADER_LINE_SIZE or the limit of the head (73,728 bytes) is exceeded."""

    status = 431
    code = "request_header_fields_too_large"


class Unauthorized(GatewayError):
    """The API key is missing, malformed or unknown; the message does not state which."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class KeyExpired(Unauthorized):
    """The API key has expired."""

    code = "key_expired"


class RouteNotExposed(GatewayError):
    """EXPOSED_ROUTES does not include this path of llama-server."""

    status = 403
    type = "permission_error"
    code = "route_not_exposed"


class AdminKeyRequired(GatewayError):
    """The request requires a key in ADMIN_KEY_IDS, and this key is not in it."""

    status = 403
    type = "permission_error"
    code = "admin_key_required"


class OutsideKeyScope(GatewayError):
    """The key is limited to routes or networks, and the request is outside of them."""

    status = 403
    type = "permission_error"
    code = "key_scope"


class Limited(GatewayError):
    """The key is over its requests or tokens per minute, or its address sent many invalid keys."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)


class QuotaExceeded(GatewayError):
    """The key has used its tokens of the day or month, or its engine-seconds of the day."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)


class ConcurrencyLimited(Limited):
    """The key already has MAX_CONCURRENT_PER_KEY requests running or waiting."""

    code = "concurrency_limit_exceeded"


# The gateway's or the engine's fault --------------------------------------------------------


class Shed(GatewayError):
    """No capacity, or no engine yet; the same request may succeed a little later."""

    status = 503

    def __init__(self, message: str, *, retry_after: float, close: bool = False) -> None:
        super().__init__(message, retry_after=retry_after, close=close)


class QueueFull(Shed):
    """MAX_QUEUE_SIZE, MAX_BODY_MEMORY, the key's share of either, or MAX_CONNECTIONS is reached."""

    code = "queue_full"


class QueueTimeout(Shed):
    """No slot became free within MAX_QUEUE_WAIT."""

    code = "queue_timeout"


class ModelLoading(Shed):
    """The model is loading: after MAX_QUEUE_WAIT, or at once for a request that does not wait."""

    code = "model_loading"


class BackendUnavailable(Shed):
    """The engine cannot be reached, or the supervisor gave up on it."""

    code = "backend_unavailable"


class LimitsUnavailable(Shed):
    """SHARED_LIMITS_OUTAGE is closed, and the server of SHARED_LIMITS cannot be reached."""

    code = "limits_unavailable"


class Draining(Shed):
    """The server is shutting down."""

    code = "draining"


class UpstreamError(GatewayError):
    """llama-server could not be reached, closed the connection or sent an invalid response."""

    status = 502
    code = "backend_error"


class UpstreamBusy(UpstreamError):
    """A replica has refused the request with 429 or 503; another one may take it."""


class UpstreamLost(UpstreamError):
    """The connection to llama-server was lost before its response was complete."""


class UpstreamClosedKept(UpstreamLost):
    """A kept connection was closed before any byte of a response, possibly while it was idle."""


class EngineCrashed(GatewayError):
    """Two engines have died while they worked on the request."""

    status = 502
    code = "engine_crashed"
    should_retry = False


class UpstreamTimeout(GatewayError):
    """llama-server sent nothing for REQUEST_TIMEOUT, or took longer than MAX_REQUEST_DURATION."""

    status = 504
    type = "timeout_error"
    code = "backend_timeout"
    should_retry = False


class ReloadFailed(GatewayError):
    """The keys file cannot be read; the keys that were loaded stay in force."""

    code = "reload_failed"


CODES: Final = frozenset(
    kind.code
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, GatewayError) and hasattr(kind, "code")
)
"""Of all error responses of the gateway."""
