"""The accounts of exchanges that are over: counted in the metrics, handed to the access log.

An exchange that ends is put on a list, and that is all its client ever waits for. They are
counted many at once: a tight loop costs half of what the same lines cost between two reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llama_gguf.core.exchange import Exchange
from llama_gguf.core.metrics import Metrics

MAX_OPEN: Final = 64
"""Exchanges that are settled at once: some 0.2 ms of work, which others wait for."""


class Accounts:
    """Of one gateway.

    Args:
        log: takes the exchanges that have been counted.
    """

    def __init__(self, log: Callable[[list[Exchange]], None]) -> None:
        self._log = log
        self._metrics = Metrics()
        self._open: list[Exchange] = []

    def close(self, exchange: Exchange) -> None:
        """Account for *exchange*, which is over, soon."""
        self._open.append(exchange)
        if len(self._open) >= MAX_OPEN:
            self.settle()

    @property
    def metrics(self) -> Metrics:
        """With everything that is over by now."""
        self.settle()
        return self._metrics

    def settle(self) -> None:
        """Account for all that is over."""
        ended = self._open
        if ended:
            self._open = []
            self._metrics.count(ended)
            self._log(ended)
