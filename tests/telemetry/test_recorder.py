from __future__ import annotations

from typing import Any

import pytest

from llama_gguf.scheduling.exchange import Exchange
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.recorder import MAX_OPEN, Accounts
from llama_gguf.telemetry.token_usage import Usage
from llama_gguf.telemetry.usage_totals import Ledger
from tests.support.exchanges import finished_exchange, request_for

NOW = 1_800_000_000.0


class Log:
    """Records the exchanges, and the number that was counted by then."""

    def __init__(self) -> None:
        self.batches: list[list[Exchange]] = []
        self.ledger = Ledger(NOW)
        self.accounts = Accounts(self.take, ledger=self.ledger, wall=lambda: NOW)
        self.counted: list[int] = []

    def take(self, exchanges: list[Exchange]) -> None:
        self.batches.append(exchanges)
        self.counted.append(total(self.accounts.metrics))


def total(metrics: Metrics) -> int:
    return sum(metrics.requests.values())


def test_an_exchange_that_is_over_is_only_put_on_a_list() -> None:
    log = Log()
    log.accounts.close(finished_exchange())

    assert log.batches == []


def test_settling_counts_and_logs_everything_once_and_in_its_order() -> None:
    log = Log()
    exchanges = [finished_exchange(status=200 + n) for n in range(5)]
    for exchange in exchanges:
        log.accounts.close(exchange)
    log.accounts.settle()
    log.accounts.settle()

    assert log.batches == [exchanges]
    assert total(log.accounts.metrics) == 5


def test_logged_exchanges_have_been_counted() -> None:
    log = Log()
    log.accounts.close(finished_exchange())
    log.accounts.close(finished_exchange())
    log.accounts.settle()

    assert log.counted == [2]


def test_metrics_have_everything_that_is_over() -> None:
    log = Log()
    assert total(log.accounts.metrics) == 0
    log.accounts.close(finished_exchange())

    assert total(log.accounts.metrics) == 1
    assert len(log.batches) == 1


def test_other_counters_are_unchanged_by_a_batch() -> None:
    log = Log()
    log.accounts.metrics.rejections["queue_full"] += 1
    log.accounts.close(finished_exchange())
    log.accounts.settle()

    assert log.accounts.metrics.rejections == {"queue_full": 1}


def test_a_full_batch_is_counted_at_once() -> None:
    log = Log()
    for n in range(3 * MAX_OPEN + 1):
        log.accounts.close(finished_exchange())
        assert n + 1 - sum(map(len, log.batches)) < MAX_OPEN

    assert [len(batch) for batch in log.batches] == [MAX_OPEN] * 3


def test_nothing_is_logged_when_nothing_is_over() -> None:
    log = Log()
    log.accounts.settle()

    assert log.batches == []


def test_an_exchange_that_ends_during_logging_is_counted_exactly_once() -> None:
    late = finished_exchange(status=404)
    batches: list[list[Exchange]] = []

    def take(exchanges: list[Exchange]) -> None:
        if not batches:
            accounts.close(late)
        batches.append(list(exchanges))

    accounts = Accounts(take, ledger=Ledger(NOW), wall=lambda: NOW)
    first = finished_exchange()
    accounts.close(first)
    accounts.settle()
    accounts.settle()

    assert batches == [[first], [late]]
    assert total(accounts.metrics) == 2


# Tokens -------------------------------------------------------------------------------------------


def telling(exchange: Exchange) -> Exchange:
    exchange.ending = b'{"usage":{"prompt_tokens":33,"completion_tokens":6}}'
    return exchange


def test_usage_is_read_before_an_exchange_is_counted_and_logged() -> None:
    log = Log()
    log.accounts.close(telling(finished_exchange()))
    log.accounts.settle()

    assert [exchange.usage for exchange in log.batches[0]] == [Usage(33, 6, None)]
    assert log.accounts.metrics.tokens == {("alice", "prompt"): 33, ("alice", "completion"): 6}
    view: Any = log.ledger.view("alice", NOW)
    assert view["last_minute"]["completion_tokens"] == 6


def test_a_beginning_counts_as_well_as_an_end() -> None:
    log = Log()
    exchange = finished_exchange()
    exchange.opening = b'{"usage":{"prompt_tokens":3},"data":['
    exchange.ending = b"0.1,0.2]}"
    log.accounts.close(exchange)
    log.accounts.settle()

    assert exchange.usage == Usage(3, None, None, is_whole=False)


@pytest.mark.parametrize(
    "exchange",
    [
        telling(finished_exchange(status=400)),
        telling(finished_exchange(request_for("GET", label="/props"))),
    ],
)
def test_other_occurrences_of_usage_are_ignored(exchange: Exchange) -> None:
    log = Log()
    log.accounts.close(exchange)
    log.accounts.settle()

    assert exchange.usage is None
