"""The header of a GGUF file: facts about the model, and whether the file is complete.

Supports little-endian GGUF of versions 2 and 3, like llama.cpp on the supported machines.
Big-endian files and version 1 are rejected with a specific message.

Nothing here opens a file; the caller passes ``read`` and the file's size. The cost of a hostile
file is bounded by the limits in ``gguf_cursor`` and here, and arrays (a vocabulary has 50,000 to
250,000 strings) are skipped, not stored.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from llama_gguf.models.cache import Cache, cache_of, widest_of
from llama_gguf.models.gguf_cursor import Cursor, GgufError
from llama_gguf.models.gguf_tables import FILE_TYPES, GUESSED, LOOKS, TENSOR_TYPES
from llama_gguf.models.gguf_values import Array, GgufValue, text, whole
from llama_gguf.models.kinds import Kind, kind_of
from llama_gguf.values import Value

MAGIC: Final = b"GGUF"
MAX_KEYS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 17
MAX_ITEMS: Final = 1 << 12
"""Longer arrays are not stored."""
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT: Final = 32

_STRING: Final = 8
_ARRAY: Final = 9
_WHOLE: Final = frozenset({0, 1, 2, 3, 4, 5, 7, 10, 11})
_SCALARS: Final[Mapping[int, struct.Struct]] = {
    number: struct.Struct("<" + code) for number, code in enumerate("BbHhIif?")
} | {number: struct.Struct("<" + code) for number, code in enumerate("Qqd", start=10)}


class Tensor(NamedTuple):
    name: str
    bytes: int
    """Of its data; 0 for an unknown type."""


class ModelFacts(Value):
    """The contents of a header. None means missing, or a different value for each layer."""

    name: str
    architecture: str
    size_label: str
    parameters: int | None
    quantization: str
    context_length: int | None
    layers: int | None
    embedding_length: int | None
    head_count: int | None
    head_count_kv: int | None
    key_length: int | None
    value_length: int | None
    cache: Cache | None
    """What the engine keeps of a context; None if the header lacks what determines it."""
    widest: int
    """Elements per token of the largest intermediate result of a layer."""
    tensors: tuple[Tensor, ...]
    kind: Kind | None
    """What the file is if it is not a model."""
    vocabulary: int | None
    has_chat_template: bool
    split_count: int
    """The number of files of a split model; 1 for a model in one file."""
    split_no: int
    file_bytes: int
    needed_bytes: int
    """The minimum size of a complete file; too low if a tensor's type is unknown."""


class _Entry(NamedTuple):
    """A tensor in the header."""

    name: str
    elements: int
    kind: int
    offset: int

    def size(self) -> int:
        """Bytes of its data; 0 for an unknown type."""
        kind = TENSOR_TYPES.get(self.kind)
        return 0 if kind is None else -(-self.elements // kind.elements) * kind.size


def looks_like(start: bytes) -> str:
    """Describe the format of a file by its first bytes; empty for GGUF and unknown formats.

    Args:
        start: the first bytes, at least 16 unless the file is shorter.
    """
    if start.startswith(MAGIC):
        return ""
    # safetensors: the length of a JSON text as u64, followed by the text.
    if start[8:9] == b"{" and start[5:8] == b"\0\0\0":
        return "a safetensors file, which must be converted to GGUF first"
    if start and not start.strip(b"\0"):
        return "only zeros, as an interrupted download leaves behind"
    beginning = start.lstrip().lower()
    return next((what for begin, what in LOOKS if beginning.startswith(begin)), "")


def check_start(start: bytes) -> None:
    """Check the first bytes of a file.

    Raises:
        GgufError: it is empty or not GGUF.
    """
    if not start:
        raise GgufError("empty")
    if start.startswith(MAGIC):
        return
    if MAGIC.startswith(start):
        raise GgufError(f"cut off: it has {len(start)} bytes")
    look = looks_like(start)
    raise GgufError("not a GGUF file" + (f"; it looks like {look}" if look else ""))


def read_facts(read: Callable[[int], bytes], file_bytes: int) -> ModelFacts:
    """Read the header of a file, and compare it with the file's size.

    Args:
        read: returns the next *n* bytes, starting at offset 0; fewer only at the end.
        file_bytes: size of the file.

    Raises:
        GgufError: the file is empty, not GGUF, of an unsupported kind, damaged, or truncated, in
            its header or its data.
    """
    header = Cursor(read, file_bytes)
    tensor_count, key_count = _read_counts(header)
    values = _read_values(header, key_count)
    tensors = [_read_entry(header) for _ in range(tensor_count)]
    alignment = _alignment(values)
    _check_tensors(tensors, alignment)
    needed = _needed_bytes(header.position, tensors, alignment)
    if needed > file_bytes:
        raise GgufError(f"cut off: it has {file_bytes} bytes, but needs at least {needed}")
    return _facts(values, tensors, file_bytes=file_bytes, needed_bytes=needed)


def read_kind(read: Callable[[int], bytes], file_bytes: int) -> Kind | None:
    """What a file is, by its first general keys alone; None for a model.

    Writers begin with them, so this is much cheaper than ``read_facts``.

    Raises:
        GgufError: it is not GGUF, or damaged.
    """
    header = Cursor(read, file_bytes)
    _, key_count = _read_counts(header)
    values: dict[str, GgufValue] = {}
    for _ in range(key_count):
        key = header.text()
        if "general.architecture" in values and not key.startswith(("general.", "adapter.")):
            break
        values[key] = _read_value(header)
    return kind_of(values)


def _read_counts(header: Cursor) -> tuple[int, int]:
    """The numbers of tensors and keys of the file."""
    check_start(header.peek(64))
    header.skip(len(MAGIC))
    _check_version(header.u32())
    tensors = _at_most(MAX_TENSORS, header.u64(), "tensors")
    return tensors, _at_most(MAX_KEYS, header.u64(), "metadata keys")


def _read_values(header: Cursor, count: int) -> dict[str, GgufValue]:
    values: dict[str, GgufValue] = {}
    for _ in range(count):
        key = header.text()
        if key in values:
            raise GgufError(f"damaged: its header has the key {shown(key)} twice")
        values[key] = _read_value(header)
    return values


def _check_tensors(tensors: Sequence[_Entry], alignment: int) -> None:
    """Check what llama.cpp checks: unique names, and data in the order of the header.

    Raises:
        GgufError: it would reject the file.
    """
    names: set[str] = set()
    offset: int | None = 0
    for tensor in tensors:
        if tensor.name in names:
            raise GgufError(f"damaged: its header has the tensor {shown(tensor.name)} twice")
        names.add(tensor.name)
        if offset is not None and tensor.offset != offset:
            raise GgufError(
                f"damaged: the data of the tensor {shown(tensor.name)} is at {tensor.offset}, "
                f"but should be at {offset}"
            )
        # The size of an unknown type is not known, so what follows cannot be checked.
        known = offset is not None and tensor.kind in TENSOR_TYPES
        offset = tensor.offset + -(-tensor.size() // alignment) * alignment if known else None


def shown(name: str) -> str:
    """*name* without unprintable characters: a hostile header may contain escape sequences."""
    return "".join(c for c in name[:64] if c.isprintable())


def _check_version(version: int) -> None:
    if version in (2, 3):
        return
    if version == 1:
        raise GgufError("GGUF of version 1, which llama.cpp no longer reads")
    if version == 0:
        raise GgufError("damaged: GGUF of version 0, which does not exist")
    if version & 0xFFFF == 0:
        raise GgufError("big-endian GGUF, which is not supported")
    raise GgufError(f"GGUF of version {version}; versions 2 and 3 are supported")


def _at_most(limit: int, count: int, what: str) -> int:
    if count > limit:
        raise GgufError(f"not a model: it claims to have {count} {what}")
    return count


def _read_value(header: Cursor) -> GgufValue:
    kind = header.u32()
    if kind == _STRING:
        return header.text()
    if kind == _ARRAY:
        return _skip_array(header)
    value: GgufValue = header.unpack(_scalar(kind))[0]
    return value


def _skip_array(header: Cursor) -> Array:
    kind, length = header.u32(), header.u64()
    if kind == _STRING:
        header.skip_strings(length)
    elif kind in _WHOLE and length <= MAX_ITEMS:
        form = _SCALARS[kind]
        return Array(length, tuple(int(header.unpack(form)[0]) for _ in range(length)))
    else:
        # `_scalar` rejects an array of arrays, which llama.cpp does not support either.
        header.skip(length * _scalar(kind).size)
    return Array(length)


def _scalar(kind: int) -> struct.Struct:
    try:
        return _SCALARS[kind]
    except KeyError:
        raise GgufError(f"damaged: a value in its header is of the unknown type {kind}") from None


def _read_entry(header: Cursor) -> _Entry:
    name = header.text()
    dimensions = header.u32()
    if dimensions > MAX_DIMENSIONS:
        raise GgufError(f"damaged: a tensor in its header has {dimensions} dimensions")
    elements = math.prod(header.u64() for _ in range(dimensions))
    return _Entry(name, elements=elements, kind=header.u32(), offset=header.u64())


def _alignment(values: Mapping[str, GgufValue]) -> int:
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise GgufError(f"damaged: its alignment is {alignment}, which is not a power of two")
    return alignment


def _needed_bytes(header_end: int, tensors: Iterable[_Entry], alignment: int) -> int:
    data_start = -(-header_end // alignment) * alignment
    return max((data_start + t.offset + t.size() for t in tensors), default=header_end)


def _facts(
    values: Mapping[str, GgufValue],
    tensors: Sequence[_Entry],
    *,
    file_bytes: int,
    needed_bytes: int,
) -> ModelFacts:
    architecture = text(values, "general.architecture")
    heads, width = (
        whole(values, f"{architecture}.{name}")
        for name in ("attention.head_count", "embedding_length")
    )
    per_head = width // heads if width and heads else None
    tokens = values.get("tokenizer.ggml.tokens")
    return ModelFacts(
        name=text(values, "general.name"),
        architecture=architecture,
        size_label=text(values, "general.size_label"),
        parameters=sum(t.elements for t in tensors) or None,
        quantization=_quantization(values, tensors),
        context_length=whole(values, f"{architecture}.context_length"),
        layers=whole(values, f"{architecture}.block_count"),
        embedding_length=width,
        head_count=heads,
        head_count_kv=whole(values, f"{architecture}.attention.head_count_kv"),
        key_length=whole(values, f"{architecture}.attention.key_length") or per_head,
        value_length=whole(values, f"{architecture}.attention.value_length") or per_head,
        cache=cache_of(architecture, values),
        widest=widest_of(architecture, values),
        tensors=tuple(Tensor(t.name, t.size()) for t in tensors),
        kind=kind_of(values),
        vocabulary=tokens.length if isinstance(tokens, Array) else None,
        has_chat_template="tokenizer.chat_template" in values,
        split_count=whole(values, "split.count") or 1,
        split_no=whole(values, "split.no") or 0,
        file_bytes=file_bytes,
        needed_bytes=needed_bytes,
    )


def _quantization(values: Mapping[str, GgufValue], tensors: Iterable[_Entry]) -> str:
    """The file type in the metadata; if missing, the tensor type of most parameters."""
    file_type = whole(values, "general.file_type")
    if file_type is not None and file_type & ~GUESSED in FILE_TYPES:
        return FILE_TYPES[file_type & ~GUESSED]
    held: Counter[int] = Counter()
    for tensor in tensors:
        held[tensor.kind] += tensor.elements
    kinds = [TENSOR_TYPES[kind].name for kind, _ in held.most_common(1) if kind in TENSOR_TYPES]
    return kinds[0] if kinds else "unknown"
