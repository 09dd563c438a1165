"""The devices that the lives of one engine have had, such as GPUs and the peers of ``--rpc``.

llama-server starts without a device that has disappeared, and logs nothing about its devices at
its default verbosity. ``llama-server --list-devices`` lists those that it would use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from llama_gguf.values import Value

_NUMBERED: Final = r"^([A-Za-z]+)\d+(?= \()"


class Device(Value):
    """A device that llama-server sees."""

    name: str
    total: int
    free: int
    """Bytes."""

    @property
    def flag_name(self) -> str:
        """Its name for ``--device``, such as CUDA0."""
        return self.name.split(" ")[0]

    @property
    def description(self) -> str:
        """Such as the model of a GPU, or the address of a RPC server."""
        return self.name.partition(" (")[2].removesuffix(")")

    @property
    def identity(self) -> str:
        """Its name without its number, which changes when a device before it disappears."""
        return re.sub(_NUMBERED, r"\1", self.name)


def read_devices(output: str) -> tuple[Device, ...] | None:
    """The devices in the *output* of ``--list-devices``; None if it has no such list."""
    if "Available devices:" not in output:
        return None
    return tuple(
        Device(f"{name} ({what})", int(total) << 20, int(free) << 20)
        for name, what, total, free in re.findall(
            r"^ +(\S+): (.*) \((\d+) MiB, (\d+) MiB free\)$", output, re.MULTILINE
        )
    )


class DeviceHistory:
    """The devices of all lives of one engine."""

    def __init__(self) -> None:
        self._had: Counter[str] = Counter()

    def missing(self, devices: Iterable[Device]) -> tuple[str, ...]:
        """Those that *devices*, which a new life has, lack in comparison with earlier lives."""
        now = Counter(device.identity for device in devices)
        self._had |= now
        return tuple(sorted((self._had - now).elements()))


def degraded(missing: Sequence[str]) -> str:
    """One sentence for people; empty if nothing is *missing*."""
    return f"It runs without devices that it had before: {', '.join(missing)}" if missing else ""
