"""Imports asyncio, without the modules that it needs only in cases that do not occur here.

asyncio loads ``ssl`` for connections with TLS, ``inspect`` for a few rare calls, and ``subprocess``
for processes: more than 3 MB of memory in each process, and 8 ms (CPython 3.11 on Debian). How each
is left out, and why that is safe: docs/adr/0036-asyncio-without-ssl.md,
docs/adr/0039-stand-ins-for-rarely-used-modules.md.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, cast

_CO_COROUTINE: Final = 0x80
"""Of a code object's flags: CPython's Include/cpython/code.h."""


def _is_coroutine_function(function: object) -> bool:
    """As in ``inspect``, for functions and methods: called for each signal that is handled."""
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


StandIns = Mapping[str, Mapping[str, object]]
"""By module: what asyncio uses of it in any case."""

ALWAYS: Final[StandIns] = {
    "inspect": {"iscoroutinefunction": _is_coroutine_function},
    "locale": {},  # imported by subprocess, for text
}
WITHOUT_PROCESSES: Final[StandIns] = {"subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3}}
WITHOUT_TLS: Final[StandIns] = {"asyncio.sslproto": {}}


class StandIn(ModuleType):
    """Imports the module *name* when anything of it is used but *attributes*."""

    def __init__(self, name: str, attributes: Mapping[str, object]) -> None:
        super().__init__(name)
        vars(self).update(attributes)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        self.leave()
        return getattr(importlib.import_module(self.__name__), attribute)

    def leave(self) -> None:
        """Let later imports find the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


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
    stand_ins = [StandIn(*each) for each in unused.items() if each[0] not in modules]
    modules.update((each.__name__, each) for each in stand_ins)
    if has_no_ssl:
        modules["ssl"] = None  # so that its import fails (Python's reference, "The module cache")
    try:
        import asyncio  # noqa: F401, PLC0415
    finally:
        if has_no_ssl:
            del modules["ssl"]
        for each in stand_ins:
            each.leave()
