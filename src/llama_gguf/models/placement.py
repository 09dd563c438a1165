"""Divides a model's memory between GPUs and RAM, as llama-server does.

It puts whole layers on GPUs: ``NGL`` counts them from the last one backwards, and the first unit
is the output tensor. Several GPUs have consecutive layers, in proportion to ``--tensor-split`` or
to their free memory. A layer's part of the cache is where the layer is. The token embeddings are
always in RAM; if one tensor is used for both (tied embeddings), it is in RAM and on a GPU.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from llama_gguf.models.engine_options import AUTO, Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.memory import Need
from llama_gguf.values import Value, replace

GPU_RESERVE_BYTES: Final = 512 << 20
"""On each GPU, for the driver and for everything that is not counted here."""

REMOTE: Final = "RPC"
"""How the names of devices begin that are RPC servers."""

_EXPERTS: Final = r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps"
_LAYER: Final = r"blk\.([0-9]+)\."
_INPUT: Final = r"token_|position_embd|per_layer_token_embd|altup_"
_OUTPUT: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"


class Part(Value):
    """What is in one place, in bytes."""

    weights: int = 0
    cache: int = 0
    compute: int = 0

    @property
    def certain(self) -> int:
        """Without what is estimated."""
        return self.weights + self.cache

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute


class Placed(Value):
    gpus: tuple[Part, ...]
    ram: Part
    is_exact: bool = True
    """False if llama-server divides it in a way that is not known here."""


class Gpu(Value):
    """A GPU that llama-server can use."""

    name: str
    """Such as CUDA0."""
    free: int
    address: str = ""
    """Of the RPC server that it is."""

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.name} ({self.address})" if self.address else self.name


def chosen_gpus(gpus: Sequence[Gpu], chosen: Options) -> tuple[Gpu, ...]:
    """Those that ``--device``, ``--split-mode`` and ``--main-gpu`` leave, in their order.

    Unless ``--device`` sets it, RPC servers are first, although llama-server lists them last.
    """
    if chosen.devices is not None:
        by_name = {gpu.name: gpu for gpu in gpus}
        gpus = [by_name[name] for name in chosen.devices if name in by_name]
    else:
        gpus = sorted(gpus, key=lambda gpu: not gpu.name.startswith(REMOTE))
    if chosen.split_mode == "none" and 0 <= chosen.main_gpu < len(gpus):
        return (gpus[chosen.main_gpu],)
    return tuple(gpus)


def place(wanted: Need, facts: ModelFacts, chosen: Options, gpus: Sequence[Gpu]) -> Placed:
    """Divide *wanted* between the *gpus*, which ``chosen_gpus`` returned, and RAM."""
    if not gpus or not chosen.ngl:
        return Placed((), Part(wanted.model, wanted.cache, wanted.compute))
    home = _Homes(len(wanted.layers), chosen, gpus)
    weights, cache = [0] * (home.ram + 1), [0] * (home.ram + 1)
    is_tied = all(tensor.name != _OUTPUT for tensor in facts.tensors)
    for tensor in facts.tensors:
        weights[home.of_tensor(tensor.name)] += tensor.bytes
        if is_tied and tensor.name == _EMBEDDING and home.of_output() != home.ram:
            weights[home.of_output()] += tensor.bytes
    for layer, size in enumerate(wanted.layers):
        cache[home.of_layer(layer) if chosen.kv_offload else home.ram] += size
    *parts, ram = map(Part, weights, cache)
    compute = wanted.compute + GPU_RESERVE_BYTES
    return Placed(
        tuple(replace(part, compute=compute) if part.certain else part for part in parts),
        ram,
        is_exact=chosen.split_mode in {"layer", "none"} and chosen.ngl != AUTO,
    )


class _Homes:
    """The place of each tensor: the number of a GPU, or ``ram``."""

    def __init__(self, layers: int, chosen: Options, gpus: Sequence[Gpu]) -> None:
        units = layers + 1
        self.ram = len(gpus)
        self._layers = layers
        self._used = units if chosen.ngl < 0 else min(chosen.ngl, units)
        self._first = units - self._used
        self._gpus = {gpu.name: number for number, gpu in enumerate(gpus)}
        shares = [*chosen.tensor_split, *[0.0] * len(gpus)][: len(gpus)]
        if not any(shares):
            shares = [float(gpu.free) for gpu in gpus]
        if not any(shares):
            shares = [1.0] * len(gpus)
        self._ends = [end / sum(shares) for end in accumulate(shares)]
        self._overrides = [
            (pattern, self._gpus.get(buffer, self.ram))
            for text, buffer in chosen.overrides
            if (pattern := _pattern(text)) is not None
        ]
        self._cpu_moe_layers = chosen.cpu_moe_layers

    def of_layer(self, layer: int) -> int:
        if layer < self._first:
            return self.ram
        return min(bisect_right(self._ends, (layer - self._first) / self._used), self.ram - 1)

    def of_output(self) -> int:
        return self.of_layer(self._layers)

    def of_tensor(self, name: str) -> int:
        match = re.match(_LAYER, name)
        for pattern, place in self._overrides:
            if pattern.search(name):
                return place
        if match is None:
            return self.ram if re.match(_INPUT, name) else self.of_output()
        layer = int(match[1])
        if layer < self._cpu_moe_layers and re.search(_EXPERTS, name):
            return self.ram
        return self.of_layer(layer) if layer < self._layers else self.ram


def _pattern(text: str) -> re.Pattern[str] | None:
    """The pattern of ``--override-tensor``; None if it is none here: C++ has other expressions."""
    try:
        return re.compile(text)
    except re.error:
        return None
