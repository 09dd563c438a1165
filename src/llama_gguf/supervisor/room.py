"""Whether memory allows a second engine beside the one that it will replace.

With too little, one of the two would be killed, or the driver would move layers to RAM. So what is
unknown counts as no room: then the old engine is stopped first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llama_gguf.engines.devices import Device
from llama_gguf.models import memory
from llama_gguf.models.engine_options import Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.placement import Gpu, chosen_gpus, place

RAM_RESERVE_BYTES: Final = 512 << 20
"""For the process itself, and for what is only estimated."""


def has_room(
    facts: ModelFacts,
    chosen: Options,
    *,
    devices: Sequence[Device] | None,
    memory_available: int | None,
    has_same_file: bool,
) -> bool:
    """Decide whether one more engine fits.

    Args:
        facts: the model's.
        chosen: its options.
        devices: its GPUs, with the memory that is free now; None if unknown.
        memory_available: of the machine, or of its control group; None if unknown.
        has_same_file: whether a running engine maps the same file of the model: its pages are in
            memory once.
    """
    wanted = memory.need(facts, chosen)
    has_more_files = chosen.projector or chosen.draft or chosen.adapters
    if wanted is None or devices is None or memory_available is None or has_more_files:
        return False
    gpus = chosen_gpus([Gpu(device.flag_name, device.free) for device in devices], chosen)
    placed = place(wanted, facts, chosen, gpus)
    if any(part.total > gpu.free for part, gpu in zip(placed.gpus, gpus, strict=False)):
        return False
    is_mapped = chosen.mmap and not chosen.mlock
    in_ram = placed.ram.cache + placed.ram.compute
    if not (is_mapped and has_same_file):
        in_ram += placed.ram.weights
    return in_ram + RAM_RESERVE_BYTES <= memory_available
