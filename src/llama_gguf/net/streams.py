"""What asyncio's streams raise when the peer fails."""

from __future__ import annotations

import asyncio
from typing import Final

FAILURES: Final = (
    OSError,
    ValueError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
)
"""The connection is lost, or what was received is something else than expected. A time-out is an
OSError."""
