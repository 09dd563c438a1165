from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import (
    BadRequest,
    GatewayError,
    KeyExpired,
    Limited,
    MethodNotAllowed,
    PayloadTooLarge,
    QueueFull,
    RouteNotExposed,
    Unauthorized,
    UpstreamError,
    UpstreamTimeout,
)
from llama_gguf.http1.local_response import (
    duration_text,
    envelope,
    error_fields,
    head,
)
from llama_gguf.http1.routes import Dialect

LINE = re.compile(rb"[A-Za-z-]+: [\x20-\x7e]*\r\n")


def fields_of(lines: list[bytes]) -> dict[str, str]:
    """Header lines, checked and split; the names in lower case."""
    whole = b"".join(lines)
    assert b"".join(LINE.findall(whole)) == whole
    rows = [line.split(": ", 1) for line in whole.decode().split("\r\n")[:-1]]
    assert len({name.lower() for name, _ in rows}) == len(rows)
    return {name.lower(): value for name, value in rows}


# Heads --------------------------------------------------------------------------------------------


def test_a_head_has_status_type_and_length_and_ends_with_a_blank_line() -> None:
    assert head(503, [b"X-A: 1\r\n"], length=7, content_type=b"text/plain") == (
        b"HTTP/1.1 503 Service Unavailable\r\nX-A: 1\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 7\r\n\r\n"
    )


def test_an_empty_response_has_a_length_of_0() -> None:
    assert b"\r\nContent-Length: 0\r\n" in head(200, [], length=0)


def test_204_has_no_length() -> None:  # RFC 9110 section 8.6
    assert head(204, [], length=0) == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_a_status_without_a_phrase_still_makes_a_head() -> None:
    assert head(529, [], length=0).startswith(b"HTTP/1.1 529 \r\n")


# Envelopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "type_", "code"),
    [
        (BadRequest("no"), "invalid_request_error", "bad_request"),
        (Unauthorized("no"), "authentication_error", "invalid_api_key"),
        (KeyExpired("no"), "authentication_error", "key_expired"),
        (RouteNotExposed("no"), "permission_error", "route_not_exposed"),
        (Limited("no", retry_after=1), "rate_limit_error", "rate_limit_exceeded"),
        (QueueFull("no", retry_after=1), "server_error", "queue_full"),
        (UpstreamError("no"), "server_error", "backend_error"),
        (UpstreamTimeout("no"), "timeout_error", "backend_timeout"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GatewayError) else None,
)
def test_openais_envelope_has_their_four_members(
    error: GatewayError, type_: str, code: str
) -> None:
    assert json.loads(envelope(error, Dialect.OPENAI, request_id="r")) == {
        "error": {"message": "no", "type": type_, "param": None, "code": code}
    }


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (BadRequest("no"), "invalid_request_error"),
        (Unauthorized("no"), "authentication_error"),
        (RouteNotExposed("no"), "permission_error"),
        (PayloadTooLarge("no"), "request_too_large"),
        (MethodNotAllowed("no", allow="GET"), "invalid_request_error"),
        (Limited("no", retry_after=1), "rate_limit_error"),
        (QueueFull("no", retry_after=1), "overloaded_error"),
        (UpstreamError("no"), "api_error"),
        (UpstreamTimeout("no"), "timeout_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GatewayError) else None,
)
def test_anthropics_envelope_has_their_type_and_the_requests_id(
    error: GatewayError, type_: str
) -> None:
    assert json.loads(envelope(error, Dialect.ANTHROPIC, request_id="r-1")) == {
        "type": "error",
        "error": {"type": type_, "message": "no"},
        "request_id": "r-1",
    }


# Fields of errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "seconds", "milliseconds"),
    [
        (0.0, "1", "1"),
        (0.0001, "1", "1"),
        (0.25, "1", "250"),
        (1.0, "1", "1000"),
        (1.001, "2", "1001"),
        (59.5, "60", "59500"),
    ],
)
def test_the_wait_is_rounded_up_so_that_no_client_retries_too_early(
    wait: float, seconds: str, milliseconds: str
) -> None:
    assert fields_of(error_fields(Limited("no", retry_after=wait))) == {
        "retry-after": seconds,
        "retry-after-ms": milliseconds,
    }


@given(wait=st.floats(0, 1e6))
def test_a_compliant_client_waits_long_enough_and_at_most_a_second_too_long(wait: float) -> None:
    fields = fields_of(error_fields(QueueFull("no", retry_after=wait)))

    assert wait <= int(fields["retry-after"]) <= max(1, wait + 1)
    assert wait <= int(fields["retry-after-ms"]) / 1000 <= wait + 0.001 + 1e-9


def test_an_error_that_waiting_does_not_mend_names_no_wait() -> None:
    assert error_fields(PayloadTooLarge("no")) == []


def test_a_401_names_its_challenge() -> None:
    for error in (Unauthorized("no"), KeyExpired("no")):
        assert fields_of(error_fields(error))["www-authenticate"].startswith("Bearer")


def test_a_405_names_what_is_allowed() -> None:
    fields = fields_of(error_fields(MethodNotAllowed("no", allow="GET, HEAD")))

    assert fields == {"allow": "GET, HEAD"}


def test_a_504_keeps_clients_from_repeating_the_work() -> None:
    assert fields_of(error_fields(UpstreamTimeout("no"))) == {"x-should-retry": "false"}


# Durations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, b"0ms"),
        (0.0001, b"1ms"),
        (0.12, b"120ms"),
        (1.0, b"1s"),
        (6.2, b"7s"),
        (59.0, b"59s"),
        (59.5, b"1m0s"),
        (60.0, b"1m0s"),
        (61.0, b"1m1s"),
        (360.0, b"6m0s"),
        (3599.5, b"1h0m0s"),
        (71649.7, b"19h54m10s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: bytes) -> None:
    assert duration_text(seconds) == text


@given(seconds=st.floats(0, 3_000_000))
def test_a_duration_is_never_shown_shorter_than_it_is(seconds: float) -> None:
    found = re.fullmatch(
        r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", duration_text(seconds).decode()
    )

    assert found is not None
    hours, minutes, whole, milliseconds = (int(part or 0) for part in found.groups())
    shown = hours * 3600 + minutes * 60 + whole + milliseconds / 1000
    assert seconds <= shown or math.isclose(seconds, shown)
    assert shown < seconds + 1
