"""A key's share of a bounded resource: the queue, or the memory for request bodies.

The rule is that of shared switch buffers (Choudhury and Hahne, "Dynamic queue length thresholds
for shared-memory packet switches", 1998): a key may hold up to a multiple of what is free. Some
of the resource therefore always remains for further keys, and little of it is idle.
"""

from __future__ import annotations

from typing import Final

FREE_SHARES: Final = 4
"""The multiple. With a multiple of m, each of n keys gets m / (1 + n * m): 4/5, 4/9, 4/13 ..."""


def is_within_share(held: int, *, free: int) -> bool:
    """Whether a key may hold *held* of a resource, if *free* of it then remains."""
    return held <= FREE_SHARES * free
