"""Whether the gateway's hot modules are compiled in this installation: hatch_build.py."""

from __future__ import annotations

import os
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

COMPILED: Final = "compiled"
PURE: Final = "pure Python"


def form_of(folder: str) -> str:
    """The form of the package in *folder*: Python imports an extension before a source file."""
    memo = os.path.join(folder, "memo")
    is_compiled = any(os.path.exists(memo + suffix) for suffix in EXTENSION_SUFFIXES)
    return COMPILED if is_compiled else PURE


FORM: Final = form_of(os.path.dirname(__file__))
"""Of this installation."""
