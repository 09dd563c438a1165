"""Imports modules of the standard library without what these import only for rare cases.

``logging`` imports ``traceback`` for exceptions, and asyncio ``inspect`` for a few errors: together
megabytes of memory in each process, and milliseconds of its start. What is left out for whom, and
why that is safe: docs/adr/0039-stand-ins-for-rarely-used-modules.md.
"""

# Only fast imports here; events.py needs it at each start.
from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

Unused = Mapping[str, Mapping[str, object]]
"""Modules that are rarely used, each with what is used of it in any case."""


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


@contextmanager
def stand_ins(unused: Unused) -> Iterator[None]:
    """Let modules that are imported now get stand-ins for *unused*; others get the real ones.

    To be used before any thread starts. A module that is loaded already is left alone.
    """
    modules = cast("dict[str, Any]", sys.modules)
    added = [StandIn(*each) for each in unused.items() if each[0] not in modules]
    modules.update((each.__name__, each) for each in added)
    try:
        yield
    finally:
        for each in added:
            each.leave()
