"""A key's share of a bounded resource: the queue, or the memory for bodies.

The rule is that of shared switch buffers (Choudhury and Hahne, "Dynamic queue length thresholds
for shared-memory packet switches", 1998): a key may hold so much more than what is free, so that
some of it stays free for other keys, and little of it lies idle.
"""

from __future__ import annotations

from typing import Final

FREE_SHARES: Final = 4
"""One key alone gets four fifths; two get four ninths each; and so on."""


def is_within_share(held: int, *, free: int) -> bool:
    """Whether a key may hold *held* of a resource of which *free* is then left."""
    return held <= FREE_SHARES * free
