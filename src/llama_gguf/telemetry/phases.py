"""The phases of a finished exchange: waiting for a slot or for the engine, prefill, decode.

They are computed from the marks of its record and, where the response has them, the engine's own
``timings``. Times are seconds on the loop's clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from llama_gguf.http1.exchange_record import ExchangeRecord

QUEUE: Final = "queue"
LOAD: Final = "load"
PREFILL: Final = "prefill"
DECODE: Final = "decode"

MAX_OUTAGES: Final = 64


class Phase(NamedTuple):
    """A part of an exchange."""

    name: str
    begin: float
    end: float


class Outages:
    """The times at which no engine was ready: a request that waited then, waited for the engine."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, float]] = deque(maxlen=MAX_OUTAGES)
        self._since: float | None = None

    def note(self, *, serves: bool, since: float) -> None:
        """Note the present state, which began at *since*; more than once changes nothing."""
        if not serves:
            self._since = since if self._since is None else self._since
        elif self._since is not None:
            self._ended.append((self._since, since))
            self._since = None

    def all(self) -> list[tuple[float, float]]:
        """The last ones, in chronological order; the end of one that lasts is infinity."""
        lasting = [] if self._since is None else [(self._since, math.inf)]
        return [*self._ended, *lasting]


def phases(exchange: ExchangeRecord, outages: Iterable[tuple[float, float]]) -> Iterator[Phase]:
    """Those that *exchange* had, in chronological order.

    Args:
        exchange: has ended.
        outages: as ``Outages.all``.
    """
    if exchange.queued_at:
        yield from _waiting(exchange, outages)
    if exchange.forwarded_at and exchange.first_byte_at:
        yield from _at_engine(exchange)


def _waiting(exchange: ExchangeRecord, outages: Iterable[tuple[float, float]]) -> Iterator[Phase]:
    at, end = exchange.queued_at, exchange.queued_at + exchange.queued
    for first, last in outages:
        if first >= end or last <= at:
            continue
        if first > at:
            yield Phase(QUEUE, at, first)
        yield Phase(LOAD, max(first, at), min(last, end))
        at = min(last, end)
    if at < end:
        yield Phase(QUEUE, at, end)


def _at_engine(exchange: ExchangeRecord) -> Iterator[Phase]:
    """Prefill and decode.

    1. A stream: its first token separates them. The engine's ``timings`` limit each, since the
       engine's own queue is no part of the first, nor a slow client of the second.
    2. A complete response with ``timings``: they precede its first byte.
    3. Else their border is unknown, and there is neither.
    """
    usage, begin, end = exchange.usage, exchange.forwarded_at, exchange.ended_at
    prompting = usage.prompting if usage is not None else None
    generating = usage.generating if usage is not None else None
    if exchange.first_token_at:  # 1
        first_token = exchange.first_token_at
        if generating is not None:
            end = min(end, first_token + generating)
    elif generating is not None:  # 2
        end = exchange.first_byte_at
        first_token = max(begin, end - generating)
    else:  # 3
        return
    if prompting is not None:
        begin = max(begin, first_token - prompting)
    yield Phase(PREFILL, begin, first_token)
    yield Phase(DECODE, first_token, end)
