"""Files with the beginning of a llama-server's state, for tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def state(tokens: Sequence[int], rest: bytes = b"KV") -> bytes:
    return struct.pack(f"<III{len(tokens)}i", 0x67677371, 2, len(tokens), *tokens) + rest
