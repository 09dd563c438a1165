"""Counts what restored prompts have spared: tokens that were in the cache without being computed.

The engine reports how many tokens of a prompt were cached, and not why. Each conversation that was
restored at a start of the engine therefore counts once: with the first response that has cached
tokens, and no more of them than the shortest restored one that it can have continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.telemetry.batch import Batch

if TYPE_CHECKING:
    from llama_gguf.gateway.fleet import Fleet

MIN_TOKENS: Final = 16
"""Fewer are what all prompts begin with."""


class Restored:
    """The conversations with which one life of an engine began.

    Args:
        life: its number.
        tokens: of each conversation.
        seconds_per_token: that it takes to compute one.
    """

    def __init__(self, life: int, tokens: Sequence[int], seconds_per_token: float) -> None:
        self.life = life
        self.seconds_per_token = seconds_per_token
        self._tokens = sorted(tokens)

    def claim(self, cached: int) -> int:
        """The tokens that a response was spared, of which *cached* were in the cache."""
        if cached < MIN_TOKENS:
            return 0
        for place, tokens in enumerate(self._tokens):
            if tokens >= cached:
                del self._tokens[place]
                return cached
        return 0


class SparedPrompts:
    """An ``ExchangeSink``.

    Args:
        fleet: of the gateway.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._restored: dict[str, Restored] = {}
        """By the label of the replica."""
        self.tokens = 0
        self.seconds = 0.0

    def take(self, batch: Batch) -> None:
        if not self._fleet.keeps_prompts:
            return
        self._look()
        for record in batch.records:
            usage = record.usage
            restored = self._restored.get(record.replica or self._only())
            if usage is None or not usage.cached or restored is None:
                continue
            tokens = restored.claim(usage.cached)
            self.tokens += tokens
            self.seconds += tokens * restored.seconds_per_token

    def _only(self) -> str:
        return next(iter(self._restored)) if len(self._restored) == 1 else ""

    def _look(self) -> None:
        """Note which engines have begun a life."""
        for replica in self._fleet.replicas.values():
            facts = replica.tracker.status.prompt_cache
            if facts:
                known = self._restored.get(replica.label)
                if known is None or facts["life"] > known.life:
                    self._restored[replica.label] = Restored(
                        facts["life"], facts["restored"], facts["seconds_per_token"]
                    )

    @property
    def facts(self) -> dict[str, Any] | None:
        """For metrics and people; None unless prompts are kept."""
        found: list[Mapping[str, Any]] = [
            replica.tracker.status.prompt_cache
            for replica in self._fleet.replicas.values()
            if replica.tracker.status.prompt_cache
        ]
        if not found:
            return None
        # Each engine reports the numbers of all, as they were when it last had to do with them.
        latest = max(found, key=_events)
        return {
            "bytes": latest["bytes"],
            "files": latest["files"],
            **{name: latest[name] for name in _COUNTERS},
            "spared_tokens": self.tokens,
            "spared_seconds": round(self.seconds, 3),
        }


_COUNTERS: Final = ("saves", "save_failures", "restores", "restore_failures")


def _events(facts: Mapping[str, Any]) -> int:
    return sum(facts[name] for name in _COUNTERS)
