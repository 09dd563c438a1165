"""Whether the model fits into memory, with the calculation, which docs/models.md explains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from llama_gguf.cli.results import Level, Result
from llama_gguf.engines.locate import Device
from llama_gguf.engines.machine import Machine
from llama_gguf.models import memory
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.memory import Need, Options, Placed
from llama_gguf.models.model_file import size_text

LEAST_CTX: Final = 512


def results(
    facts: ModelFacts, chosen: Options, *, devices: Sequence[Device] | None, here: Machine
) -> Iterator[Result]:
    """Compare the memory that the model needs with the memory that is available.

    Args:
        facts: the model's.
        chosen: llama-server's options.
        devices: the GPUs that it can use; None if unknown, and then so is what runs on them.
        here: the machine.
    """
    wanted = memory.need(facts, chosen)
    if wanted is None:
        yield Result(
            "memory needed",
            "unknown: the model's header lacks values that are needed to calculate it",
        )
        return
    yield Result("context", _context_text(wanted, chosen))
    yield Result("memory needed", _sum_text(wanted, facts, chosen))
    if devices is not None:
        yield from _places(wanted, facts, chosen, devices=devices, here=here)


def _places(
    wanted: Need,
    facts: ModelFacts,
    chosen: Options,
    *,
    devices: Sequence[Device],
    here: Machine,
) -> Iterator[Result]:
    placed = memory.place(wanted, facts, chosen, gpus=len(devices))

    def smaller(fits: Callable[[Placed], bool]) -> str:
        return _context_that_fits(facts, chosen, len(devices), fits)

    if placed.gpu:
        free = sum(device.free for device in devices)
        on = f"{len(devices)} GPUs" if len(devices) > 1 else devices[0].name
        yield _result(
            "VRAM",
            f"{size_text(placed.gpu)} of {size_text(free)} free on {on}",
            placed.gpu <= free,
            lambda: (
                f"{smaller(lambda less: less.gpu <= free)}, lower NGL (now {chosen.ngl}), "
                "or use a smaller quantisation"
            ),
        )
    available = here.memory_available
    if available is not None:
        yield _result(
            "RAM",
            f"{size_text(placed.ram)} of {size_text(available)} available",
            placed.ram <= available,
            lambda: (
                f"{smaller(lambda less: less.ram <= available)}, use a smaller quantisation, "
                "or add memory"
            ),
        )
        if placed.ram <= available:
            yield from _prompt_cache(chosen, available - placed.ram)


def _context_text(wanted: Need, chosen: Options) -> str:
    how = "share" if chosen.shares_context else "divide"
    slots = f"{wanted.slots} slots {how}" if wanted.slots > 1 else "1 slot has"
    return f"{slots} {wanted.cells} tokens; a request may use {wanted.slot_tokens} of them"


def _sum_text(wanted: Need, facts: ModelFacts, chosen: Options) -> str:
    key, value = (memory.type_bytes(kind) for kind in (chosen.type_k, chosen.type_v))
    most = "at most " if wanted.is_bound else ""
    return (
        f"{most}{size_text(wanted.total)}: model {size_text(wanted.model)}"
        f" + KV cache {most}{size_text(wanted.kv)}"
        f" ({wanted.cells} tokens x {facts.kv_heads} KV heads"
        f" x ({facts.key_length} x {key:g} + {facts.value_length} x {value:g}) bytes)"
        f" + working space about {size_text(wanted.compute)}"
    )


def _result(subject: str, what: str, fits: bool, advice: Callable[[], str]) -> Result:
    if fits:
        return Result(subject, what)
    return Result(subject, f"{what}: it does not fit. {advice()}.", Level.WRONG)


def _context_that_fits(
    facts: ModelFacts, chosen: Options, gpus: int, fits: Callable[[Placed], bool]
) -> str:
    """The largest context of CTX, CTX / 2, CTX / 4 ... that fits; it need not be the maximum."""
    ctx = (chosen.ctx or facts.context_length or 0) // 2
    while ctx >= LEAST_CTX:
        less = dataclasses.replace(chosen, ctx=ctx)
        wanted = memory.need(facts, less)
        if wanted and fits(memory.place(wanted, facts, less, gpus=gpus)):
            return f"Set CTX to {ctx}"
        ctx //= 2
    return "No CTX is small enough"


def _prompt_cache(chosen: Options, remaining: int) -> Iterator[Result]:
    size = chosen.cache_ram_mib << 20
    if 0 <= size <= remaining:
        return
    most = f"up to {size_text(size)}" if size >= 0 else "without a limit"
    yield Result(
        "prompt cache",
        f"llama-server caches old prompts in RAM, {most}, but {size_text(remaining)} will be free: "
        f"limit it (in MiB) with EXTRA_ARGS='--cache-ram {remaining // 2 >> 20}'",
        Level.NOTE,
    )
