"""For how long a client should wait that is refused for lack of room: Retry-After is an estimate.

A place becomes free when one of the running requests ends. How long that takes is not known; how
long the requests took that have ended is.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.telemetry.metrics import Metrics

LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 60.0


def until_one_ends(metrics: Metrics, running: int) -> float:
    """The estimated seconds until one of *running* requests ends.

    Args:
        metrics: of the requests that have ended.
        running: how many take the places.
    """
    seconds = sum(each.sum for each in metrics.durations.values())
    count = sum(sum(each.counts) for each in metrics.durations.values())
    mean = seconds / count if count else 0.0
    return min(MOST_SECONDS, max(LEAST_SECONDS, mean / max(1, running)))
