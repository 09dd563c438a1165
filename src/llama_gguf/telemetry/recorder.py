"""Accounting of finished exchanges: metrics, each key's ledger, the access log.

A finished exchange is appended to a list, which is all that its client waits for. They are counted
in batches: a tight loop costs half of what the same lines cost between two reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llama_gguf.http1.exchange_record import ExchangeRecord
from llama_gguf.telemetry import token_usage
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.usage_totals import Ledger, counts_of

MAX_OPEN: Final = 64
"""Exchanges per batch: some 0.2 ms of work, during which no other client is served."""


class Accounts:
    """Of one gateway.

    Args:
        log: called with the exchanges that have been counted.
        ledger: usage by key; may be replaced, as by one that was loaded.
        wall: returns POSIX seconds.
    """

    def __init__(
        self,
        log: Callable[[list[ExchangeRecord]], None],
        *,
        ledger: Ledger,
        wall: Callable[[], float],
    ) -> None:
        self._log = log
        self._wall = wall
        self.ledger = ledger
        self._metrics = Metrics()
        self._open: list[ExchangeRecord] = []

    def close(self, exchange: ExchangeRecord) -> None:
        """Queue *exchange*, which is finished, for counting."""
        self._open.append(exchange)
        if len(self._open) >= MAX_OPEN:
            self.settle()

    @property
    def metrics(self) -> Metrics:
        """Including all exchanges that are finished by now."""
        self.settle()
        return self._metrics

    def settle(self) -> None:
        """Count all finished exchanges."""
        ended = self._open
        if ended:
            self._open = []
            for exchange in ended:
                route = exchange.request.route
                if exchange.ending and route.operation and exchange.status < 300:
                    exchange.usage = token_usage.read(exchange.opening, exchange.ending)
            self._metrics.count(ended)
            now = self._wall()
            for key_id, counts in counts_of(ended).items():
                self._metrics.count_tokens(key_id, counts)
                self.ledger.add(key_id, counts, now)
            self._log(ended)
