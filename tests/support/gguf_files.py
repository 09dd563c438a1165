"""A small writer of GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

U8, BOOL, STRING, ARRAY, U16, U32, F32, U64 = 0, 7, 8, 9, 2, 4, 6, 10
_CODES = {U8: "<B", BOOL: "<?", U16: "<H", U32: "<I", F32: "<f", U64: "<Q"}


@dataclass(frozen=True)
class Typed:
    """A metadata value of a GGUF type that does not follow from its Python type."""

    kind: int
    value: Any
    """For an array, the kind of its items and the items."""


@dataclass(frozen=True)
class Tensor:
    dims: tuple[int, ...]
    kind: int = 0  # F32
    size: int = 0
    """Bytes of its data; 0 for the size of F32."""
    name: str = ""
    """Empty for a generated name."""
    offset: int | None = None
    """Of its data; None for the place behind the data of the tensor before."""


METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "Test Model",
    "general.size_label": "1K",
    "general.file_type": 0,
    "llama.context_length": 128,
    "llama.block_count": 2,
    "llama.embedding_length": 16,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "a longer token"],
    "tokenizer.ggml.scores": Typed(ARRAY, (F32, [0.5, 1.5, 2.5])),
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.ggml.add_bos_token": True,
}
TENSORS = (Tensor((16, 8)), Tensor((16,)))


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: object) -> bytes:
    if isinstance(value, Typed):
        if value.kind == ARRAY:
            kind, items = value.value
            return _array(kind, [struct.pack(_CODES[kind], i) for i in items])
        return struct.pack("<I", value.kind) + struct.pack(_CODES[value.kind], value.value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    assert isinstance(value, list)
    return _array(STRING, [text(item) for item in value])


def _array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)


def header(
    metadata: Mapping[str, object] = METADATA,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """The header, padded up to where the data begins."""
    raw = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    raw += b"".join(text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for number, tensor in enumerate(tensors):
        raw += text(tensor.name or f"blk.{number}.weight")
        raw += struct.pack(
            f"<I{len(tensor.dims)}QIQ",
            len(tensor.dims),
            *tensor.dims,
            tensor.kind,
            offset if tensor.offset is None else tensor.offset,
        )
        offset = _padded(offset + _size(tensor), alignment)
    return raw + bytes(_padded(len(raw), alignment) - len(raw))


def gguf(
    metadata: Mapping[str, object] = METADATA,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A whole file, with data that differs from place to place."""
    head = header(metadata, tensors, version=version, alignment=alignment)
    end = 0
    for tensor in tensors:
        end = _padded(end, alignment) + _size(tensor)
    return head + bytes(i % 251 for i in range(end))


def part(no: int, count: int, *, name: str = "Split Model") -> bytes:
    """The file of one part of a split model."""
    metadata = {
        "general.architecture": "llama",
        "general.name": name,
        "split.no": Typed(U16, no - 1),
        "split.count": Typed(U16, count),
    }
    return gguf(metadata, [Tensor((8, no))])


def _size(tensor: Tensor) -> int:
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    return tensor.size or 4 * elements


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
