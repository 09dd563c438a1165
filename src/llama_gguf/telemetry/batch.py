"""A batch of finished exchanges, and the interface of the sinks that take it."""

from __future__ import annotations

from typing import Final, Protocol

from llama_gguf.http1.exchange_record import ExchangeRecord
from llama_gguf.http1.routes import Kind

COUNTS: Final = (
    "requests",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "responses_without_usage",
)
"""What is counted by key, in the order in which it is stored."""
# The places in ``COUNTS``; single literals, which mypyc inlines.
REQUESTS: Final = 0
ERRORS: Final = 1
PROMPT: Final = 2
COMPLETION: Final = 3
CACHED: Final = 4
WITHOUT_USAGE: Final = 5
_PROXIED: Final = Kind.PROXIED

Counts = list[int]
"""One number for each of ``COUNTS``."""


class Batch:
    """Finished exchanges, with the sums that more than one sink needs.

    Args:
        records: in the order in which the exchanges ended; a list, which mypyc reads fastest.
        now: POSIX seconds.
    """

    __slots__ = ("counts", "now", "records")

    def __init__(self, records: list[ExchangeRecord], now: float) -> None:
        self.records = records
        self.now = now
        self.counts = counts_of(records)
        """By key id."""


class ExchangeSink(Protocol):
    """Counts or logs finished exchanges. Called once per batch, so that it may be a Protocol."""

    def take(self, batch: Batch) -> None:
        """Each finished exchange is in exactly one batch."""


def counts_of(ended: list[ExchangeRecord]) -> dict[str, Counts]:
    """The sums of finished exchanges, by key id.

    Without a key id (``-``), only exchanges with a response of the engine count: those of a gateway
    that requires no keys.
    """
    found: dict[str, Counts] = {}
    last, counts = None, _none()
    for exchange in ended:
        route, key_id = exchange.request.route, exchange.key_id
        if route.kind is not _PROXIED:
            continue
        if key_id == "-" and (not exchange.first_byte_at or route.needs_no_key):
            continue
        if key_id != last:  # usually the key is the same as before
            last, counts = key_id, found.setdefault(key_id, _none())
        counts[REQUESTS] += 1
        if exchange.status >= 400:
            counts[ERRORS] += 1
            continue
        usage = exchange.usage
        if usage is not None:
            counts[PROMPT] += usage.prompt or 0
            counts[COMPLETION] += usage.completion or 0
            counts[CACHED] += usage.cached or 0
        if route.operation and (usage is None or not usage.is_whole):
            counts[WITHOUT_USAGE] += 1
    return found


def _none() -> Counts:
    return [0] * len(COUNTS)
