from __future__ import annotations

from llama_gguf.core.exchange import Exchange
from llama_gguf.core.metrics import Metrics
from llama_gguf.gateway.accounts import MAX_OPEN, Accounts
from tests.exchanges import ended


class Log:
    """Writes down what it is told, and how much was counted by then."""

    def __init__(self) -> None:
        self.batches: list[list[Exchange]] = []
        self.accounts = Accounts(self.take)
        self.counted: list[int] = []

    def take(self, exchanges: list[Exchange]) -> None:
        self.batches.append(exchanges)
        self.counted.append(total(self.accounts.metrics))


def total(metrics: Metrics) -> int:
    return sum(metrics.requests.values())


def test_an_exchange_that_is_over_is_only_put_on_a_list() -> None:
    log = Log()
    log.accounts.close(ended())

    assert log.batches == []


def test_settling_counts_and_logs_everything_once_and_in_its_order() -> None:
    log = Log()
    exchanges = [ended(status=200 + n) for n in range(5)]
    for exchange in exchanges:
        log.accounts.close(exchange)
    log.accounts.settle()
    log.accounts.settle()

    assert log.batches == [exchanges]
    assert total(log.accounts.metrics) == 5


def test_what_is_logged_has_been_counted() -> None:
    log = Log()
    log.accounts.close(ended())
    log.accounts.close(ended())
    log.accounts.settle()

    assert log.counted == [2]


def test_metrics_have_everything_that_is_over() -> None:
    log = Log()
    assert total(log.accounts.metrics) == 0
    log.accounts.close(ended())

    assert total(log.accounts.metrics) == 1
    assert len(log.batches) == 1


def test_what_else_is_counted_in_the_metrics_stays() -> None:
    log = Log()
    log.accounts.metrics.rejections["queue_full"] += 1
    log.accounts.close(ended())
    log.accounts.settle()

    assert log.accounts.metrics.rejections == {"queue_full": 1}


def test_so_many_are_settled_by_themselves_and_no_more_are_ever_open() -> None:
    log = Log()
    for n in range(3 * MAX_OPEN + 1):
        log.accounts.close(ended())
        assert n + 1 - sum(map(len, log.batches)) < MAX_OPEN

    assert [len(batch) for batch in log.batches] == [MAX_OPEN] * 3


def test_nothing_is_logged_when_nothing_is_over() -> None:
    log = Log()
    log.accounts.settle()

    assert log.batches == []


def test_one_that_ends_while_others_are_logged_is_neither_lost_nor_told_twice() -> None:
    late = ended(status=404)
    batches: list[list[Exchange]] = []

    def take(exchanges: list[Exchange]) -> None:
        if not batches:
            accounts.close(late)
        batches.append(list(exchanges))

    accounts = Accounts(take)
    first = ended()
    accounts.close(first)
    accounts.settle()
    accounts.settle()

    assert batches == [[first], [late]]
    assert total(accounts.metrics) == 2
