from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest

from llama_gguf import errors
from llama_gguf.errors import GatewayError, UserError
from llama_gguf.http1.local_response import error_fields, head

# Clients rely on these.
PROMISED = {
    errors.BadRequest: (400, "invalid_request_error", "bad_request"),
    errors.Unauthorized: (401, "authentication_error", "invalid_api_key"),
    errors.KeyExpired: (401, "authentication_error", "key_expired"),
    errors.RouteNotExposed: (403, "permission_error", "route_not_exposed"),
    errors.NotFound: (404, "invalid_request_error", "not_found"),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.MethodNotAllowed: (405, "invalid_request_error", "method_not_allowed"),
    errors.RequestTimeout: (408, "invalid_request_error", "request_timeout"),
    errors.PayloadTooLarge: (413, "invalid_request_error", "payload_too_large"),
    errors.UriTooLong: (414, "invalid_request_error", "uri_too_long"),
    errors.ExpectationFailed: (417, "invalid_request_error", "expectation_failed"),
    errors.HeadTooLarge: (431, "invalid_request_error", "request_header_fields_too_large"),
    errors.Limited: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.QuotaExceeded: (429, "insufficient_quota", "insufficient_quota"),
    errors.UpstreamError: (502, "server_error", "backend_error"),
    errors.QueueFull: (503, "server_error", "queue_full"),
    errors.QueueTimeout: (503, "server_error", "queue_timeout"),
    errors.ModelLoading: (503, "server_error", "model_loading"),
    errors.BackendUnavailable: (503, "server_error", "backend_unavailable"),
    errors.Draining: (503, "server_error", "draining"),
    errors.UpstreamTimeout: (504, "timeout_error", "backend_timeout"),
}


def kinds(family: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """All subclasses of *family* that are raised themselves, without mere base classes."""
    for kind in family.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from kinds(kind)


@pytest.mark.parametrize(
    ("kind", "promised"), PROMISED.items(), ids=lambda v: getattr(v, "__name__", "")
)
def test_status_type_and_code_of_an_error_are_stable(
    kind: type[GatewayError], promised: tuple[int, str, str]
) -> None:
    assert (kind.status, kind.type, kind.code) == promised


@pytest.mark.parametrize(
    "kind",
    [kind for kind in kinds(GatewayError) if kind.status in (429, 503)],
    ids=lambda kind: kind.__name__,
)
def test_what_may_succeed_later_cannot_be_refused_without_a_retry_after(
    kind: type[GatewayError],
) -> None:
    parameter = inspect.signature(kind).parameters["retry_after"]

    assert parameter.default is inspect.Parameter.empty
    fields = error_fields(kind("no", retry_after=1.5))
    assert b"Retry-After: 2\r\n" in fields
    assert b"retry-after-ms: 1500\r\n" in fields


@pytest.mark.parametrize("kind", [*kinds(GatewayError)], ids=lambda kind: kind.__name__)
def test_errors_of_the_client_are_4xx_and_every_status_has_a_phrase(
    kind: type[GatewayError],
) -> None:
    is_the_clients = issubclass(kind, errors.InvalidRequest | errors.Unauthorized)

    start_line = head(kind.status, (), length=0).partition(b"\r\n")[0]
    assert re.fullmatch(rb"HTTP/1\.1 [0-9]{3} [A-Z][A-Za-z ]+", start_line)
    assert kind.status >= 400
    assert not is_the_clients or kind.status < 500


def test_every_documented_code_is_of_an_error_that_can_be_sent() -> None:
    assert {kind.code for kind in kinds(GatewayError)} == errors.CODES


def test_no_two_kinds_share_a_code() -> None:
    codes = [kind.code for kind in kinds(GatewayError) if kind.__module__ == errors.__name__]
    shared = {code for code in codes if codes.count(code) > 1}

    assert shared == set()


@pytest.mark.parametrize("kind", [errors.BadRequest, errors.ExpectationFailed])
def test_the_connection_is_closed_if_the_start_of_the_next_request_is_unknown(
    kind: type[errors.BadRequest | errors.ExpectationFailed],
) -> None:
    assert kind("no").close


def test_a_retry_is_forbidden_where_it_would_only_repeat_the_work_or_the_refusal() -> None:
    forbidding = {kind: kind.should_retry for kind in kinds(GatewayError)}

    assert {kind for kind, should_retry in forbidding.items() if should_retry is not None} == {
        errors.UpstreamTimeout,
        errors.EngineCrashed,
        errors.QuotaExceeded,
    }
    assert True not in forbidding.values()


def test_str_returns_the_message() -> None:
    error = errors.QueueFull("Too many.", retry_after=1.5)

    assert (str(error), error.message, error.retry_after) == ("Too many.", "Too many.", 1.5)


def test_the_exit_status_of_a_user_error_is_1_by_default() -> None:
    assert UserError("no").exit_status == 1
    assert UserError("no", exit_status=2).exit_status == 2
