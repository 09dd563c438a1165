"""The memory that GPUs have in use, from nvidia-smi, where that exists."""

from __future__ import annotations

from typing import Final

from llama_gguf.values import Value

SECONDS: Final = 10.0
MAX_GPUS: Final = 64
_QUERY: Final = (
    "--query-gpu=index,name,memory.used,memory.total,utilization.gpu",
    "--format=csv,noheader,nounits",
)
_MIB: Final = 1 << 20


class GpuUse(Value):
    """Sizes are bytes."""

    index: int
    name: str
    used: int
    total: int
    busy: float | None
    """The part of the last moments during which it computed; None if it is unknown."""


def read(program: str) -> tuple[GpuUse, ...]:
    """Run *program*, which is nvidia-smi. Blocks; none if it fails."""
    import subprocess  # noqa: PLC0415  # a gateway without GPUs runs no program

    try:
        result = subprocess.run(
            [program, *_QUERY],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse(result.stdout)


def parse(text: str) -> tuple[GpuUse, ...]:
    """Parse the output of nvidia-smi; lines without sizes, as of shared GPUs, are left out."""
    found: list[GpuUse] = []
    for line in text.splitlines()[:MAX_GPUS]:
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 5 and all(parts[n].isascii() and parts[n].isdigit() for n in (0, 2, 3)):
            index, name, used, total, busy = parts
            ratio = int(busy) / 100 if busy.isascii() and busy.isdigit() else None
            found.append(GpuUse(int(index), name[:100], int(used) * _MIB, int(total) * _MIB, ratio))
    return tuple(found)
