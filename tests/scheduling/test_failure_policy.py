from __future__ import annotations

import pytest

from llama_gguf.errors import UpstreamClosedKept, UpstreamError, UpstreamLost
from llama_gguf.scheduling.exchange import Event, Exchange
from llama_gguf.scheduling.failure_policy import Action, Failure, decide
from tests.support.exchanges import request_for

REFUSED = UpstreamError("connection refused")
CLOSED = UpstreamClosedKept("connection closed")
LOST = UpstreamLost("connection lost")
INVALID = UpstreamError("not HTTP")


def sent(method: str = "POST", target: str = "/v1/chat/completions") -> Exchange:
    exchange = Exchange(0.0, request_for(method, target), b"r1", "127.0.0.1")
    exchange.on(Event.FORWARD)
    return exchange


def decided(
    exchange: Exchange,
    error: UpstreamError = LOST,
    *,
    was_sent: bool = True,
    has_begun: bool = False,
    may_wait: bool = True,
    deaths: int = 0,
    max_replays: int = 1,
) -> Action:
    failure = Failure(
        error, was_sent=was_sent, has_begun=has_begun, may_wait=may_wait, deaths=deaths
    )
    return decide(failure, exchange, max_replays=max_replays)


def test_1_what_was_not_sent_waits_for_an_engine_as_often_as_needed() -> None:
    exchange = sent()
    exchange.replays = 9

    assert decided(exchange, REFUSED, was_sent=False, deaths=1) is Action.REQUEUE
    assert decided(exchange, REFUSED, was_sent=False, may_wait=False) is Action.RESPOND


def test_1_a_stream_whose_head_was_sent_early_may_still_wait() -> None:
    exchange = sent()
    exchange.on(Event.SEND_HEAD_AHEAD)

    assert decided(exchange, REFUSED, was_sent=False) is Action.REQUEUE


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_2_a_safe_request_is_retried_once_after_a_kept_connection_was_closed(method: str) -> None:
    exchange = sent(method, "/v1/health")
    assert decided(exchange, CLOSED) is Action.RETRY

    exchange.has_retried = True
    assert decided(exchange, CLOSED) is Action.RESPOND


def test_3_a_request_that_has_ended_two_engines_is_refused() -> None:
    assert decided(sent(), deaths=1, max_replays=9) is Action.REFUSE
    assert decided(sent(), CLOSED, deaths=1) is Action.REFUSE


def test_4_a_request_is_sent_again_while_its_client_has_nothing_of_the_body() -> None:
    exchange = sent()
    assert decided(exchange) is Action.REPLAY
    assert decided(exchange, CLOSED) is Action.REPLAY
    exchange.on(Event.HEAD_SENT)
    assert decided(exchange) is Action.REPLAY

    assert decided(exchange, has_begun=True) is Action.BREAK_OFF


def test_4_a_request_is_sent_again_max_replays_times() -> None:
    exchange = sent()
    assert decided(exchange, max_replays=0) is Action.RESPOND

    exchange.replays = 2
    assert decided(exchange, max_replays=3) is Action.REPLAY
    assert decided(exchange, max_replays=2) is Action.RESPOND


def test_4_only_inference_is_sent_again() -> None:
    assert decided(sent("GET", "/v1/health")) is Action.RESPOND


def test_4_an_engine_that_does_not_speak_http_gets_nothing_twice() -> None:
    assert decided(sent(), INVALID) is Action.RESPOND


def test_4_without_an_engine_to_come_there_is_nothing_to_wait_for() -> None:
    assert decided(sent(), may_wait=False) is Action.RESPOND


@pytest.mark.parametrize("head", [Event.HEAD_SENT, Event.SEND_HEAD_AHEAD])
def test_6_after_the_head_the_response_is_cut(head: Event) -> None:
    exchange = sent()
    exchange.on(head)

    assert decided(exchange, max_replays=0) is Action.BREAK_OFF


def test_5_before_the_head_the_client_gets_an_error_response() -> None:
    assert decided(sent(), max_replays=0) is Action.RESPOND
