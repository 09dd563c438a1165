"""Imports asyncio, without the modules that it needs only in cases that do not occur here.

asyncio loads ``ssl`` for connections with TLS, ``inspect`` for a few rare calls, ``traceback`` for
exceptions and ``subprocess`` for processes: more than 3 MB of memory in each process, and 8 ms
(CPython 3.11 on Debian). How each is left out, and why that is safe:
docs/adr/0036-asyncio-without-ssl.md, docs/adr/0039-stand-ins-for-rarely-used-modules.md.
"""

from __future__ import annotations

import sys
from types import FrameType, FunctionType
from typing import Any, Final, cast

from llama_gguf.stand_ins import Unused, stand_ins

_CO_COROUTINE: Final = 0x80
"""Of a code object's flags: CPython's Include/cpython/code.h."""


def _is_coroutine_function(function: object) -> bool:
    """As in ``inspect``, for functions and methods: called for each signal that is handled."""
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def _unwrap(function: object) -> object:
    """As in ``inspect``: called for a callback that has raised, to name it."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _is_function(value: object) -> bool:
    return isinstance(value, FunctionType)


def _extract_stack(frame: FrameType | None = None, limit: int | None = None) -> object:
    """As in ``traceback``: called for each task and future in asyncio's debug mode."""
    import traceback  # noqa: PLC0415  # rarely used

    return traceback.extract_stack(frame or sys._getframe(1), limit)


ALWAYS: Final[Unused] = {
    "inspect": {
        "iscoroutinefunction": _is_coroutine_function,
        "isfunction": _is_function,
        "unwrap": _unwrap,
    },
    "linecache": {},
    "locale": {},  # imported by subprocess, for text
    "traceback": {"extract_stack": _extract_stack},
}
WITHOUT_PROCESSES: Final[Unused] = {"subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3}}
WITHOUT_TLS: Final[Unused] = {"asyncio.sslproto": {}}


def import_asyncio(*, has_tls: bool, has_processes: bool) -> None:
    """Import asyncio; to be called before anything else imports it, and before any thread starts.

    Args:
        has_tls: whether asyncio may have a TLS connection in this process. Without one, asyncio
            does without ``ssl`` for the whole life of the process, as in a Python that was built
            without OpenSSL; other modules, such as ``urllib``, can import it as before.
        has_processes: whether it will start processes, so that what that needs is imported at once.
    """
    modules = cast("dict[str, Any]", sys.modules)
    has_no_ssl = not has_tls and "ssl" not in modules
    unused = {
        **ALWAYS,
        **({} if has_processes else WITHOUT_PROCESSES),
        **(WITHOUT_TLS if has_no_ssl else {}),
    }
    if has_no_ssl:
        modules["ssl"] = None  # so that its import fails (Python's reference, "The module cache")
    try:
        with stand_ins(unused):
            import asyncio  # noqa: F401, PLC0415
    finally:
        if has_no_ssl:
            del modules["ssl"]
