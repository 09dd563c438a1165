"""Whether the model fits into memory, with the calculation, which docs/models.md explains.

Only what is certain is a problem. The sizes of weights and cache are known; those of compute
buffers are estimated, and weights in RAM are mapped from the file, so that the kernel can read
them again when memory is short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.engines.devices import Device
from llama_gguf.engines.machine import Machine
from llama_gguf.files.sizes import size_text
from llama_gguf.models import memory
from llama_gguf.models.engine_options import AUTO, Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.memory import Need
from llama_gguf.models.placement import REMOTE, Gpu, Part, Placed, chosen_gpus, place
from llama_gguf.values import replace

LEAST_CTX: Final = 512


@dataclass(frozen=True, slots=True)
class Companion:
    """A further file that llama-server loads with the model: a projector, a draft model."""

    what: str
    bytes: int
    on_gpu: bool


def results(
    facts: ModelFacts,
    chosen: Options,
    *,
    devices: Sequence[Device] | None,
    here: Machine,
    companions: Sequence[Companion] = (),
    parts: Sequence[Sequence[Device] | None] = (None,),
) -> Iterator[Result]:
    """Compare the memory that the model needs with the memory that is available.

    Args:
        facts: the model's.
        chosen: llama-server's options.
        devices: the GPUs that it can use; None if unknown, and then so is what runs on them.
        here: the machine.
        companions: what is loaded with the model.
        parts: the GPUs of each replica; None for all.
    """
    for mistake in memory.type_mistakes(facts, chosen):
        yield Result("cache type", mistake, Level.WRONG)
    wanted = memory.need(facts, chosen)
    if wanted is None:
        yield Result(
            "memory needed",
            "unknown: the model's header lacks values that are needed to calculate it",
        )
        return
    each = " for each replica" if len(parts) > 1 else ""
    yield Result("memory needed", _sum_text(wanted, facts, chosen, companions, each=each))
    if devices is not None:
        groups = Counter(tuple(devices if part is None else part) for part in parts)
        for number, (group, users) in enumerate(groups.items()):
            gpus = chosen_gpus([_gpu(device) for device in group], chosen)
            machine = _Places(facts, chosen, gpus, here, companions, users, len(parts))
            yield from machine.results(wanted, with_ram=number == 0)


def _gpu(device: Device) -> Gpu:
    is_remote = device.flag_name.startswith(REMOTE)
    return Gpu(device.flag_name, device.free, device.description if is_remote else "")


@dataclass(frozen=True, slots=True)
class _Places:
    """The GPUs and the RAM, for one model."""

    facts: ModelFacts
    chosen: Options
    gpus: Sequence[Gpu]
    here: Machine
    companions: Sequence[Companion]
    users: int
    """Replicas on these GPUs."""
    replicas: int
    """All of them, which share the RAM."""

    def results(self, wanted: Need, *, with_ram: bool) -> Iterator[Result]:
        placed = self._place(wanted, self.chosen)
        if any(part.total for part in placed.gpus):
            yield self._vram(wanted, placed)
        available = self.here.memory_available
        if available is not None and with_ram:
            yield self._ram(wanted, placed.ram, available)
            remaining = available - self._ram_bytes(placed.ram)
            if remaining >= 0:
                yield from _prompt_cache(self.chosen, remaining, self.replicas)

    def _place(self, wanted: Need, chosen: Options) -> Placed:
        """What all replicas need: in RAM, they share the pages of a mapped model file."""
        one = place(wanted, self.facts, chosen, self.gpus)
        is_mapped = chosen.mmap and not chosen.mlock
        return Placed(
            tuple(_times(part, self.users) for part in one.gpus),
            replace(
                _times(one.ram, self.replicas),
                weights=one.ram.weights * (1 if is_mapped else self.replicas),
            ),
            is_exact=one.is_exact,
        )

    def _vram(self, wanted: Need, placed: Placed) -> Result:
        needed = self._vram_bytes(placed)
        text = ", ".join(
            f"{size_text(size)} of {size_text(gpu.free)} free on {gpu.text}"
            for size, gpu in zip(needed, self.gpus, strict=True)
        ) + _for_all(self.users)
        if self._fits_gpus(placed):
            return Result("VRAM", text)
        if self.chosen.ngl == AUTO and self.chosen.fit:
            text += ": llama-server will put fewer layers there, since NGL leaves it to it"
            return Result("VRAM", text, Level.NOTE)
        if self.chosen.fits_ctx:
            text += ": llama-server will reduce the context, since CTX leaves it to it"
            return Result("VRAM", text, Level.NOTE)
        advice = (
            f"{self._smaller(self._fits_gpus)}, lower NGL (now {self.chosen.ngl}), "
            "or use a smaller quantisation"
        )
        is_certain = wanted.is_exact and placed.is_exact
        if is_certain and any(
            part.certain > gpu.free for part, gpu in zip(placed.gpus, self.gpus, strict=True)
        ):
            return Result("VRAM", f"{text}: it does not fit. {advice}.", Level.WRONG)
        return Result("VRAM", f"{text}: it may not fit. {advice}.", Level.NOTE)

    def _ram(self, wanted: Need, ram: Part, available: int) -> Result:
        needed = self._ram_bytes(ram)
        text = f"{size_text(needed)} of {size_text(available)} available{_for_all(self.replicas)}"
        if needed <= available:
            return Result("RAM", text)

        def fits(placed: Placed) -> bool:
            return self._ram_bytes(placed.ram) <= available

        if self.chosen.fits_ctx:
            text += ": CTX leaves the context to llama-server, which uses all RAM of the machine"
            return Result("RAM", f"{text}. {self._smaller(fits)}.", Level.NOTE)
        advice = f"{self._smaller(fits)}, use a smaller quantisation, or add memory"
        is_mapped = self.chosen.mmap and not self.chosen.mlock
        certain = ram.cache if is_mapped else ram.certain
        if wanted.is_exact and certain > available:
            return Result("RAM", f"{text}: it does not fit. {advice}.", Level.WRONG)
        if is_mapped and ram.cache + ram.compute <= available:
            slow = "parts of the model will be read from its file again and again, which is slow"
            return Result("RAM", f"{text}: {slow}. {advice}.", Level.NOTE)
        return Result("RAM", f"{text}: it may not fit. {advice}.", Level.NOTE)

    def _vram_bytes(self, placed: Placed) -> list[int]:
        """By GPU. Which of several has a companion is not known: it is counted on the first."""
        extra = self.users * sum(each.bytes for each in self.companions if each.on_gpu)
        return [
            part.total + (extra if number == 0 else 0) for number, part in enumerate(placed.gpus)
        ]

    def _ram_bytes(self, ram: Part) -> int:
        return ram.total + self.replicas * sum(
            each.bytes for each in self.companions if not (each.on_gpu and self.gpus)
        )

    def _fits_gpus(self, placed: Placed) -> bool:
        needed = self._vram_bytes(placed)
        return all(size <= gpu.free for size, gpu in zip(needed, self.gpus, strict=False))

    def _smaller(self, fits: Callable[[Placed], bool]) -> str:
        """The largest context of CTX, CTX / 2 ... that fits; it need not be the maximum."""
        ctx = (self.chosen.ctx or self.facts.context_length or 0) // 2
        while ctx >= LEAST_CTX:
            less = replace(self.chosen, ctx=ctx)
            wanted = memory.need(self.facts, less)
            if wanted and fits(self._place(wanted, less)):
                return f"Set CTX to {ctx}"
            ctx //= 2
        return "No CTX is small enough"


def _sum_text(
    wanted: Need,
    facts: ModelFacts,
    chosen: Options,
    companions: Sequence[Companion],
    *,
    each: str,
) -> str:
    about = "" if wanted.is_exact else "about "
    parts = [f"model {size_text(wanted.model)}"]
    if kept := wanted.cache - wanted.state:
        parts.append(f"KV cache {about}{size_text(kept)} ({_cache_text(wanted, facts, chosen)})")
    if wanted.state:
        parts.append(f"states {about}{size_text(wanted.state)}")
    parts.append(f"working space about {size_text(wanted.compute)}")
    parts += [f"{file.what} at least {size_text(file.bytes)}" for file in companions]
    total = wanted.total + sum(file.bytes for file in companions)
    return f"{about}{size_text(total)}{each}: {' + '.join(parts)}"


def _cache_text(wanted: Need, facts: ModelFacts, chosen: Options) -> str:
    """Such as "1 layer x 32768 tokens, 20 layers x 1024 tokens, of type q8_0"."""
    assert facts.cache is not None
    kept = Counter(bool(layer.window) for layer in facts.cache.layers if layer.key)
    parts = [
        f"{kept[is_limited]} {'layer' if kept[is_limited] == 1 else 'layers'} x {tokens} tokens"
        for is_limited, tokens in ((False, wanted.cells), (True, wanted.windows))
        if kept[is_limited]
    ]
    types = dict.fromkeys((chosen.type_k, chosen.type_v))
    if list(types) != ["f16"]:
        parts.append(f"of type {' and '.join(types)}")
    return ", ".join(parts)


def _for_all(replicas: int) -> str:
    return f", for {replicas} replicas together" if replicas > 1 else ""


def _times(part: Part, number: int) -> Part:
    return Part(part.weights * number, part.cache * number, part.compute * number)


def _prompt_cache(chosen: Options, remaining: int, replicas: int) -> Iterator[Result]:
    size = (chosen.cache_ram_mib << 20) * replicas
    if 0 <= size <= remaining:
        return
    most = f"up to {size_text(size)}" if size >= 0 else "without a limit"
    yield Result(
        "prompt cache",
        f"llama-server caches old prompts in RAM, {most}, but {size_text(remaining)} will be free: "
        f"limit it (in MiB) with EXTRA_ARGS='--cache-ram {remaining // 2 // replicas >> 20}'",
        Level.NOTE,
    )
