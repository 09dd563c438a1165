"""Imports asyncio, without the module ``ssl`` in a process that has no TLS connection of asyncio.

With OpenSSL's libcrypto, ``ssl`` takes 4 ms and 2.1 MB of memory in each process (CPython 3.11 on
Debian). asyncio works without it, as in a Python that was built without OpenSSL, but then for the
whole life of the process; other modules, such as ``urllib``, can import ``ssl`` and use TLS as
before. So the decision is one by settings that no reload changes:
docs/adr/0036-asyncio-without-ssl.md.
"""

from __future__ import annotations

import sys
from typing import Any, cast


def import_asyncio(*, has_tls: bool) -> None:
    """Import asyncio; to be called before anything else imports it, and before any thread starts.

    Args:
        has_tls: whether asyncio may have a TLS connection in this process.
    """
    if has_tls or "ssl" in sys.modules:
        return  # asyncio will be imported as usual
    modules = cast("dict[str, Any]", sys.modules)
    modules["ssl"] = None  # so that its import fails (Python's reference, "The module cache")
    try:
        import asyncio  # noqa: F401, PLC0415
    finally:
        del modules["ssl"]
