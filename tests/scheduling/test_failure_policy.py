from __future__ import annotations

import pytest

from llama_gguf.errors import (
    GatewayError,
    UpstreamClosedKept,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llama_gguf.scheduling.exchange import Event, Exchange
from llama_gguf.scheduling.failure_policy import Action, decide
from tests.support.exchanges import request_for

REFUSED = UpstreamRefused("connection refused")
CLOSED = UpstreamClosedKept("connection closed")
INVALID = UpstreamError("not HTTP")
LATE = UpstreamTimeout("no data")


def sent(method: str = "POST", target: str = "/v1/chat/completions") -> Exchange:
    exchange = Exchange(0.0, request_for(method, target), b"r1", "127.0.0.1")
    exchange.on(Event.FORWARD)
    return exchange


def test_1_a_refused_request_waits_for_an_engine_that_may_be_restarted() -> None:
    assert decide(REFUSED, sent(), may_come_back=True) is Action.REQUEUE
    assert decide(REFUSED, sent(), may_come_back=False) is Action.RESPOND


def test_1_a_request_that_may_have_reached_the_engine_is_not_queued_again() -> None:
    for error in (CLOSED, INVALID, LATE):
        assert decide(error, sent(), may_come_back=True) is Action.RESPOND


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_2_a_safe_request_is_retried_once_after_a_kept_connection_was_closed(method: str) -> None:
    exchange = sent(method, "/v1/models")
    assert decide(CLOSED, exchange, may_come_back=False) is Action.RETRY

    exchange.has_retried = True
    assert decide(CLOSED, exchange, may_come_back=False) is Action.RESPOND


def test_2_a_post_is_never_retried() -> None:
    assert decide(CLOSED, sent(), may_come_back=False) is Action.RESPOND


@pytest.mark.parametrize("error", [REFUSED, CLOSED, INVALID, LATE])
def test_4_after_the_head_the_response_is_cut(error: GatewayError) -> None:
    exchange = sent()
    exchange.on(Event.HEAD_SENT)

    assert decide(error, exchange, may_come_back=False) is Action.BREAK_OFF


def test_4_a_stream_whose_head_was_sent_early_is_cut_too() -> None:
    exchange = sent()
    exchange.on(Event.OPEN)

    assert decide(INVALID, exchange, may_come_back=False) is Action.BREAK_OFF


def test_1_a_stream_whose_head_was_sent_early_may_still_wait() -> None:
    exchange = sent()
    exchange.on(Event.OPEN)

    assert decide(REFUSED, exchange, may_come_back=True) is Action.REQUEUE
