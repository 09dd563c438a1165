"""The API keys of the tests, and the file that has them."""

from __future__ import annotations

from typing import Final

KEY: Final = "sk-alice-0123456789"
OTHER_KEY: Final = "sk-bob-0123456789ab"
EXPIRED_KEY: Final = "sk-carol-0123456789"
KEYS_TEXT: Final = f"alice:{KEY}\nbob:{OTHER_KEY}:1000\ncarol:{EXPIRED_KEY}::2001-01-01T00:00:00Z\n"
BACKEND_KEY: Final = "gateway-secret-of-the-engine"
"""Of the engine: the gateway must never show it to a client."""
