"""The values in the metadata of a GGUF file, and how they are looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama_gguf.values import Value


class Array(Value):
    """An array in the metadata: its length, and its items if it is a short one of integers."""

    length: int
    items: tuple[int, ...] | None = None


GgufValue = int | float | bool | str | Array


def text(values: Mapping[str, GgufValue], key: str) -> str:
    """The text of *key* without unprintable characters: it may contain escape sequences."""
    value = values.get(key, "")
    return "".join(c for c in value if c.isprintable()) if isinstance(value, str) else ""


def whole(values: Mapping[str, GgufValue], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def per_layer(values: Mapping[str, GgufValue], key: str, layers: int) -> Sequence[int] | None:
    """One integer per layer, from an array or from one number for all layers."""
    value = values.get(key)
    if isinstance(value, Array):
        return value.items if value.items is not None and len(value.items) >= layers else None
    return (int(value),) * layers if isinstance(value, int) else None
