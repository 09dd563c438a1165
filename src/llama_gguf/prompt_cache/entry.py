"""One state of a slot on disk: what is known of its file, and for which engine it is valid.

llama-server accepts the file of another model of the same shape, and then writes nonsense. So a
state is valid only for the same content of the model, the same build and the same options.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llama_gguf.digests import sha256
from llama_gguf.values import Value

_HEADER: Final = struct.Struct("<III")
_MAGIC: Final = 0x67677371
"""LLAMA_STATE_SEQ_MAGIC of llama.cpp; its version and the number of tokens follow, then these."""
HEADER_BYTES: Final = _HEADER.size
TOKEN_BYTES: Final = 4

_WITHOUT_EFFECT: Final = frozenset(
    ("--model", "--alias", "--threads", "--slot-save-path", "--device", "--main-gpu")
)
"""Flags with a value that do not change what a slot holds; the model counts by its content."""


class Entry(Value):
    """The description of a file, which is stored beside it."""

    name: str
    """Of the file, without extension: random, so that no client can guess it."""
    validity: str
    """As of ``validity_of``."""
    tokens: int
    size: int
    """Bytes."""
    used_at: float
    """POSIX seconds of the last use of the slot."""
    owners: tuple[str, ...]
    """The keys of which one has sent its content."""
    seconds: float = 0.0
    """To compute it, by the engine's own rate; 0 = unknown."""

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Entry:
        """Undo ``to_json``.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        values: Mapping[str, Any] = json.loads(data)
        return cls(
            name=str(values["name"]),
            validity=str(values["validity"]),
            tokens=int(values["tokens"]),
            size=int(values["size"]),
            used_at=float(values["used_at"]),
            owners=tuple(str(owner) for owner in values["owners"]),
            seconds=float(values["seconds"]),
        )


def validity_of(model_digest: str, build: str, options: Sequence[str]) -> str:
    """The name of all that a state depends on.

    Args:
        model_digest: of the whole content of the model's files.
        build: of llama-server.
        options: as of ``options_of``.
    """
    facts = json.dumps([model_digest, build, list(options)])
    return sha256(facts.encode()).hexdigest()[:32]


def options_of(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The options of llama-server of which any may change what a slot holds.

    All flags but a few count: cache types, the context and its division are among them.

    Args:
        words: its command line, without the program and the address.
        environ: its environment.
    """
    variables = (f"{name}={environ[name]}" for name in sorted(environ) if "LLAMA_ARG_" in name)
    return [*_effective(words), *variables]


def _effective(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        if word in _WITHOUT_EFFECT:
            next(rest, None)
        else:
            yield word


def token_count(header: bytes) -> int | None:
    """The number of tokens that a file with this *header* has; None if it is no state of a slot."""
    if len(header) < HEADER_BYTES:
        return None
    magic, _version, count = _HEADER.unpack_from(header)
    return int(count) if magic == _MAGIC else None


def tokens_in(data: bytes) -> tuple[int, ...]:
    """The tokens in *data*, which follows the header."""
    return struct.unpack(f"<{len(data) // TOKEN_BYTES}i", data)
