"""The latest requests that were forwarded or refused, for the dashboard.

Only plain facts are kept: the record of an exchange refers to its head, which contains a key.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from llama_gguf.http1.exchange_record import Usage
from llama_gguf.http1.routes import Kind
from llama_gguf.telemetry.batch import Batch

MAX_REQUESTS: Final = 500
MAX_SHOWN: Final = 50
_PROXIED: Final = Kind.PROXIED

Fact = str | int | float | None
_Row = tuple[float, float, float, bytes, str, str, int, str, Usage | None]
"""Start, first token and end; request id, key id, route, status, outcome, usage."""


class RecentRequests:
    """Of one gateway."""

    def __init__(self) -> None:
        self.offset = 0.0
        """Added to a time of an exchange, it gives POSIX seconds."""
        self._rows: deque[_Row] = deque(maxlen=MAX_REQUESTS)

    def take(self, batch: Batch) -> None:
        """Keep what is shown of each exchange in *batch*; it is converted when it is shown."""
        rows: list[_Row] = [
            (
                exchange.started_at,
                exchange.first_token_at,
                exchange.ended_at,
                exchange.id_bytes,
                exchange.key_id,
                exchange.request.route.label,
                exchange.status,
                exchange.outcome,
                exchange.usage,
            )
            for exchange in batch.records
            if exchange.request.route.kind is _PROXIED
        ]
        self._rows.extend(rows)

    def view(self, key_id: str | None) -> list[dict[str, Fact]]:
        """The latest ones of a key, or of all if that is None; the newest first."""
        found: list[dict[str, Fact]] = []
        for row in reversed(self._rows):
            if key_id is None or row[4] == key_id:
                found.append(self._shown(row))
                if len(found) == MAX_SHOWN:
                    break
        return found

    def _shown(self, row: _Row) -> dict[str, Fact]:
        started_at, first_token_at, ended_at, id_bytes, key_id, route, status, outcome, usage = row
        return {
            "ended_at": round(ended_at + self.offset, 3),
            "request_id": id_bytes.decode("ascii"),
            "key_id": key_id,
            "route": route,
            "status": status,
            "outcome": outcome,
            "prompt_tokens": None if usage is None else usage.prompt,
            "cached_tokens": None if usage is None else usage.cached,
            "completion_tokens": None if usage is None else usage.completion,
            "first_token": round(first_token_at - started_at, 4) if first_token_at else None,
            "duration": round(ended_at - started_at, 4),
        }

    def cached_ratio(self, since: float) -> float | None:
        """The part of the prompt tokens that was cached, of requests that ended after *since*.

        Args:
            since: on the clock of the exchanges.
        """
        prompt = cached = 0
        for row in reversed(self._rows):
            usage = row[8]
            if row[2] < since:
                break
            if usage is not None and usage.prompt is not None and usage.cached is not None:
                prompt += usage.prompt
                cached += usage.cached
        return round(cached / prompt, 3) if prompt else None
