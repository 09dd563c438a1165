"""Counts what each replica has computed: tokens by its own reports, over the last minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llama_gguf.telemetry.batch import Batch

if TYPE_CHECKING:
    from llama_gguf.gateway.fleet import Fleet

HALF_LIFE_SECONDS: Final = 120.0
"""After which a request counts half."""
RATE_HALF_LIFE_SECONDS: Final = 10.0
_LN_2: Final = 0.6931471805599453


class Tokens:
    """Of one label: two engines that replace one another have the same."""

    def __init__(self) -> None:
        self._prompt = 0.0
        self._cached = 0.0
        self._completion = 0.0
        self._at = 0.0

    def add(self, now: float, *, prompt: int, cached: int, completion: int) -> None:
        """Count a response at *now*, on a clock that never runs backwards."""
        self._fade(now)
        self._prompt += prompt
        self._cached += cached
        self._completion += completion

    def _fade(self, now: float) -> None:
        passed, self._at = max(now - self._at, 0.0), now
        factor = 0.5 ** (passed / HALF_LIFE_SECONDS)
        self._prompt *= factor
        self._cached *= factor
        self._completion *= 0.5 ** (passed / RATE_HALF_LIFE_SECONDS)

    @property
    def cached_ratio(self) -> float | None:
        """Part of the prompts' tokens that was cached; None before the first response."""
        return min(self._cached / self._prompt, 1.0) if self._prompt else None

    def per_second(self, now: float) -> float:
        """Tokens of output a second."""
        self._fade(now)
        return self._completion * _LN_2 / RATE_HALF_LIFE_SECONDS


class ReplicaSink:
    """An ``ExchangeSink``.

    Args:
        fleet: whose replicas are counted.
        now: on a clock that never runs backwards.
    """

    def __init__(self, fleet: Fleet, now: Callable[[], float]) -> None:
        self._fleet = fleet
        self._now = now
        self._tokens: dict[str, Tokens] = {}

    def tokens_of(self, label: str) -> Tokens:
        return self._tokens.get(label) or Tokens()

    def take(self, batch: Batch) -> None:
        labels = {replica.label for replica in self._fleet.replicas.values()}
        for gone in self._tokens.keys() - labels:
            del self._tokens[gone]
        only = next(iter(labels)) if len(labels) == 1 else ""
        now = self._now()
        for record in batch.records:
            usage = record.usage
            if usage is None:
                continue
            label = record.replica or only
            # Without a report of the cached part, a response is no evidence.
            if label in labels and usage.prompt and usage.cached is not None:
                self._tokens.setdefault(label, Tokens()).add(
                    now,
                    prompt=usage.prompt,
                    cached=usage.cached,
                    completion=usage.completion or 0,
                )
