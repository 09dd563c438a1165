"""How replicas divide the machine: its GPUs and its CPU cores; shared by `serve` and `check`.

GPUs are divided by the variable of the vendor that hides the others, so that an engine holds no
memory on them, where the position in its list is the number in the variable: CUDA and ROCm. For
every other kind, and where the user has set ``--device``, they are divided by ``--device``:
docs/adr/0030-replicas-and-rolling-restart.md.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from llama_gguf.config.schema import EngineSettings
from llama_gguf.engines.devices import Device
from llama_gguf.engines.machine import Machine
from llama_gguf.errors import UserError
from llama_gguf.models.engine_options import Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.values import Value, replace

AUTO: Final = "auto"
# Of two, the first one takes precedence; HIP reads both.
_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "CUDA": ("CUDA_VISIBLE_DEVICES",),
    "ROCm": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}


class Share(Value):
    """What one replica has of the GPUs."""

    devices: tuple[Device, ...] | None = None
    """Its GPUs; None if it has all that there are."""
    environ: Mapping[str, str] = {}
    """Variables that its engine needs."""
    flags: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For people; empty if they are not divided."""
        return ", ".join(device.flag_name for device in self.devices or ())


def count(
    replicas: int | str, facts: ModelFacts, chosen: Options, devices: Sequence[Device] | None
) -> int:
    """REPLICAS as a number: for ``auto``, one per GPU if the model fits on each of them, else 1."""
    if isinstance(replicas, int):
        return replicas
    from llama_gguf.models import memory  # noqa: PLC0415  # most servers have one replica
    from llama_gguf.models.placement import Gpu, place  # noqa: PLC0415

    gpus = _divisible(chosen, devices)
    wanted = memory.need(facts, chosen)
    if len(gpus) < 2 or wanted is None:
        return 1
    for gpu in gpus:
        (part,) = place(wanted, facts, chosen, [Gpu(gpu.flag_name, gpu.free)]).gpus
        if part.total > gpu.free:
            return 1
    return len(gpus)


def shares(
    number: int,
    chosen: Options,
    environ: Mapping[str, str],
    devices: Sequence[Device] | None,
) -> tuple[Share, ...]:
    """Divide the GPUs between *number* replicas.

    With fewer GPUs than replicas, several replicas have the same GPU.

    Args:
        number: of replicas.
        chosen: llama-server's options, without a share.
        environ: its environment, without a share.
        devices: those that it lists in this environment; None if they are unknown.

    Raises:
        UserError: an option assigns parts to GPUs by their position, or there are RPC servers.
    """
    if number > 1 and chosen.rpc:
        raise UserError(
            f"REPLICAS={number} cannot share RPC servers (--rpc): each of these serves one "
            "llama-server at a time, and the others would wait for it while they load. "
            "Set REPLICAS=1.",
            exit_status=2,
        )
    gpus = _divisible(chosen, devices)
    if number == 1 or len(gpus) < 2:
        return (Share(),) * number
    if chosen.tensor_split or chosen.main_gpu:
        raise UserError(
            f"REPLICAS={number} divides the GPUs, which --tensor-split and --main-gpu number: "
            "remove these flags, or set REPLICAS=1.",
            exit_status=2,
        )
    listed = [device.flag_name for device in devices or ()]
    return tuple(
        _share(group, listed, environ, by_flag=chosen.devices is not None)
        for group in _groups(gpus, number)
    )


def _divisible(chosen: Options, devices: Sequence[Device] | None) -> tuple[Device, ...]:
    """The GPUs that can be divided: those that are used, and of one kind.

    A build with two kinds lists a GPU twice.
    """
    if not chosen.ngl or chosen.rpc:
        return ()
    from llama_gguf.models.placement import REMOTE  # noqa: PLC0415

    found = [d for d in devices or () if not d.flag_name.startswith(REMOTE)]
    if chosen.devices is not None:
        by_name = {device.flag_name: device for device in found}
        found = [by_name[name] for name in chosen.devices if name in by_name]
    if chosen.split_mode == "none":
        found = found[chosen.main_gpu :][:1]
    return tuple(d for d in found if _kind(d.flag_name) == _kind(found[0].flag_name))


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _groups(gpus: Sequence[Device], number: int) -> list[tuple[Device, ...]]:
    if number >= len(gpus):
        return [(gpus[n % len(gpus)],) for n in range(number)]
    ends = [n * len(gpus) // number for n in range(number + 1)]
    return [tuple(gpus[a:b]) for a, b in itertools.pairwise(ends)]


def _share(
    group: tuple[Device, ...],
    listed: Sequence[str],
    environ: Mapping[str, str],
    *,
    by_flag: bool,
) -> Share:
    names = [device.flag_name for device in group]
    kind = _kind(names[0])
    of_kind = [name for name in listed if _kind(name) == kind]
    visible = None if by_flag else _visible(_VARIABLES.get(kind, ()), environ, len(of_kind))
    if visible is None:
        return Share(group, flags=("--device", ",".join(names)))
    value = ",".join(visible[of_kind.index(name)] for name in names)
    return Share(group, environ={_VARIABLES[kind][0]: value})


def _visible(variables: Sequence[str], environ: Mapping[str, str], total: int) -> list[str] | None:
    """The values that select one GPU each, by position; None if no variable can do that."""
    if not variables:
        return None
    chosen = next((value for name in variables if (value := environ.get(name, "").strip())), "")
    if not chosen:
        return [str(number) for number in range(total)]
    # CUDA also reads 0,1,-1,2 as 0,1. Such a list has another length.
    values = [value.strip() for value in re.split(",", chosen)]
    return values if len(values) == total else None


def with_thread_share(
    settings: EngineSettings, environ: Mapping[str, str], here: Machine, number: int
) -> EngineSettings:
    """*settings* with the threads of one of *number* replicas, unless LLAMA_ARG_THREADS is set."""
    if environ.get("LLAMA_ARG_THREADS") and not settings.threads:
        return settings
    limit = settings.threads or here.thread_limit
    if number > 1:
        limit = max(1, (limit or min(here.cores, here.cpus)) // number)
    return replace(settings, threads=limit)
