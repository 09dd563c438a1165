"""Which states are restored and in which order, and which of them are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llama_gguf.prompt_cache.entry import Entry

PROBE_DROPS: Final = 8
"""The probe's prompt is this many tokens shorter than the state: a client that sends the last
message again drops tokens too, which recurrent models and sliding windows cannot do."""
MAX_FILES: Final = 1000
"""Of all models: the description of each is read at each save."""
MAX_COMPUTED: Final = 5
"""Tokens of a restored prompt that may be computed; llama-server always computes one."""


def restore_batches(entries: Sequence[Entry], slots: int, ram_bytes: int) -> list[list[Entry]]:
    """The states to restore, in batches of at most one for each slot; the last is the most recent.

    After each batch but the last, llama-server moves the states of its slots to its cache in RAM
    when a request arrives. So there may be more conversations than slots. Within a batch, the most
    recent one is first.

    Args:
        entries: those that are valid.
        slots: of the engine.
        ram_bytes: that its cache in RAM may use; 0 = it has none.
    """
    recent = sorted(entries, key=lambda entry: entry.used_at, reverse=True)
    for_slots, others = recent[:slots], recent[slots:]
    fitting: list[Entry] = []
    for entry in others:
        ram_bytes -= entry.size
        if ram_bytes < 0:
            break
        fitting.append(entry)
    batches = [fitting[at : at + slots] for at in range(0, len(fitting), slots)]
    return [*reversed(batches), for_slots] if for_slots else []


def evicted(entries: Sequence[Entry], max_bytes: int, incoming_bytes: int = 0) -> list[Entry]:
    """The states to remove, least recently used first, so that the others fit.

    Args:
        entries: all that are there, of every model.
        max_bytes: PROMPT_CACHE_SIZE.
        incoming_bytes: of a file that is about to be written.
    """
    total = incoming_bytes + sum(entry.size for entry in entries)
    gone: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry.used_at):
        if total <= max_bytes and len(entries) - len(gone) <= MAX_FILES:
            break
        gone.append(entry)
        total -= entry.size
    return gone


def is_superseded(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether a state with the tokens *new* makes one with *old* useless: it continues that."""
    return len(old) <= len(new) and tuple(new[: len(old)]) == tuple(old)


def helps(prompt_tokens: int, cached_tokens: int) -> bool:
    """Whether a restored state was used, by what llama-server reports of the probe's prompt."""
    return prompt_tokens - cached_tokens <= MAX_COMPUTED


def probed(entries: Sequence[Entry]) -> Entry | None:
    """The state for the probe: the shortest, as it may have to be computed."""
    long_enough = [entry for entry in entries if entry.tokens > 2 * PROBE_DROPS]
    return min(long_enough, key=lambda entry: entry.tokens, default=None)
