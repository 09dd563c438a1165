"""Counts what finished exchanges have used of budgets, instead of what was reserved for them."""

from __future__ import annotations

from typing import Final

from llama_gguf.access.budget_ledger import BudgetLedger
from llama_gguf.access.token_budget import BYTES_PER_TOKEN
from llama_gguf.http1.exchange_record import ExchangeRecord, Reservation
from llama_gguf.net.clock import Clock
from llama_gguf.telemetry.batch import Batch

BYTES_PER_EVENT: Final = 256
"""Of llama-server's streams, which have one event per token: counted where only the length of a
response is known."""


class BudgetSink:
    """The ``telemetry.batch.ExchangeSink`` for budgets.

    Args:
        ledger: has the budgets.
        clock: of the gateway.
    """

    def __init__(self, ledger: BudgetLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    def take(self, batch: Batch) -> None:
        """As ``ExchangeSink.take``."""
        for exchange in batch.records:
            reservation = exchange.reservation
            if reservation is not None:
                exchange.reservation = None
                tokens, milliseconds = cost_of(exchange, reservation)
                self._ledger.of(exchange.key_id).settle(
                    reservation,
                    tokens,
                    milliseconds,
                    now=self._clock.limits_now(),
                    wall=self._clock.limits_wall(),
                )


def cost_of(exchange: ExchangeRecord, reservation: Reservation) -> tuple[int, int]:
    """The tokens and the engine's milliseconds that *exchange* has used.

    1. It was not sent to an engine, was refused, or failed: nothing.
    2. The response reports its tokens: those, of which cached ones count like all others. If it
       reports the engine's times: those, which cached tokens do not add to. llama-server reports
       those of one output: of several, each counts like that one, and their prompts by the length
       of the request if that is more, up to the estimate.
    3. It does not, or its client did not wait for the end: the estimate; but at least the
       request's length, up to the estimate, and that of the response, by ``BYTES_PER_TOKEN`` and
       ``BYTES_PER_EVENT``.
    4. Without the engine's times, those between its start at the engine and its end.
    """
    if not exchange.forwarded_at or _has_failed(exchange):
        return 0, 0  # 1
    milliseconds = round((exchange.ended_at - exchange.forwarded_at) * 1000)  # 4
    usage = exchange.usage
    if usage is not None and usage.is_whole:  # 2
        choices, prompt = reservation.choices, usage.prompt or 0
        if choices > 1:
            prompt = max(prompt, _length_of(exchange, reservation))
        if usage.generating is not None or usage.prompting is not None:
            seconds = (usage.prompting or 0) + (usage.generating or 0) * choices
            milliseconds = round(seconds * 1000)
        return prompt + (usage.completion or 0) * choices, milliseconds
    least = _length_of(exchange, reservation) + exchange.bytes_out // BYTES_PER_EVENT
    return max(reservation.tokens, least), milliseconds  # 3


def _length_of(exchange: ExchangeRecord, reservation: Reservation) -> int:
    """Tokens, no more than the estimate: a body with an image is longer than any context."""
    return min(exchange.bytes_in // BYTES_PER_TOKEN, reservation.tokens)


def _has_failed(exchange: ExchangeRecord) -> bool:
    """A response that MAX_REQUEST_DURATION has cut counts: its length is the client's choice."""
    outcome = exchange.outcome
    if outcome == "done" or (outcome == "backend_timeout" and exchange.status < 400):
        return exchange.status >= 400
    return not outcome.startswith("client_left")
