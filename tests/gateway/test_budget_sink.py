"""What an exchange costs its key; how it is reserved and counted: ``test_budgets``."""

from __future__ import annotations

import pytest

from llama_gguf.gateway.budget_sink import cost_of
from llama_gguf.http1.exchange_record import ExchangeRecord, Reservation, Usage
from tests.support.exchanges import STARTED_AT, finished_exchange

RESERVED = Reservation(50, 1000, (0, 0, 0, 0))


def exchange(
    outcome: str = "done",
    *,
    status: int = 200,
    usage: Usage | None = None,
    was_sent: bool = True,
    bytes_out: int = 0,
) -> ExchangeRecord:
    """One that had its slot for 1.25 of its 1.5 seconds."""
    finished = finished_exchange(usage=usage, status=status)
    finished.outcome = outcome
    finished.forwarded_at = STARTED_AT + 0.25 if was_sent else 0.0
    finished.bytes_in, finished.bytes_out = 400, bytes_out
    return finished


@pytest.mark.parametrize(
    "free",
    [
        exchange("queue_timeout", status=503, was_sent=False),
        exchange("client_left:queued", status=499, was_sent=False),
        exchange("client_left:request", status=499, was_sent=False),
        exchange(status=400),
        exchange(status=500),
        exchange("backend_error", status=502),
        exchange("backend_timeout", status=504),
        exchange("backend_error"),  # broken off, behind its head
        exchange("engine_crashed"),
    ],
    ids=lambda e: f"{e.outcome}-{e.status}",
)
def test_what_was_refused_or_has_failed_costs_nothing(free: ExchangeRecord) -> None:
    assert cost_of(free, RESERVED) == (0, 0)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(30, 12, 0, 0.5, prompting=0.25), (42, 750)),
        (Usage(30, 12, 29, 0.5, prompting=0.001), (42, 501)),  # cached tokens take no time
        (Usage(30, None, None, prompting=0.25), (30, 250)),
        (Usage(30, 12, None), (42, 1250)),  # without times, those that it had its slot
    ],
)
def test_reported_figures_are_the_cost(usage: Usage, cost: tuple[int, int]) -> None:
    assert cost_of(exchange(usage=usage), RESERVED) == cost


@pytest.mark.parametrize(
    ("unknown", "tokens"),
    [
        (exchange(), 100),  # the estimate, which has the length of the request
        (exchange(bytes_out=2560), 110),
        (exchange(usage=Usage(30, None, None, is_whole=False)), 100),
        (exchange("client_left:before_first_byte", status=499), 100),
        (exchange("client_left:streaming", bytes_out=256_000), 1100),
        (exchange("backend_timeout", bytes_out=256_000), 1100),  # cut by MAX_REQUEST_DURATION
    ],
)
def test_what_is_not_known_costs_the_estimate_or_the_length_if_that_is_more(
    unknown: ExchangeRecord, tokens: int
) -> None:
    assert cost_of(unknown, Reservation(100, 1000, ())) == (tokens, 1250)
    assert cost_of(unknown, Reservation(5000, 1000, ())) == (5000, 1250)
