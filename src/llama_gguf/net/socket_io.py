"""Reads and writes of a socket that does not block.

In C where the installation is compiled (docs/adr/0040-reads-and-writes-of-sockets-in-c.md), with
the functions of ``os`` where it is not: they behave the same.
"""

from __future__ import annotations

import os

try:
    from llama_gguf.net._socket_io import read, write
except ImportError:
    read, write = os.read, os.write

__all__ = ("read", "write")
