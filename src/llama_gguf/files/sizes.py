"""Sizes of files and memory, for people."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Format *size*, in bytes, such as ``98.4 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
