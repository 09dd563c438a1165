"""Measures what a gateway adds: the same load directly to the backend and through it, in turn.

A block is one burst of requests to each of the two, in random order; the difference within a
block is evaluated. Slow changes of the machine (heat, other work) affect both equally and cancel
out; the random order prevents a systematic disadvantage of the second.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from llama_gguf_bench.connection import Clock
from llama_gguf_bench.estimates import Estimate, bootstrap
from llama_gguf_bench.lag import Generator, LagMeter
from llama_gguf_bench.load import PAUSE_AFTER_ERROR_SECONDS, Sender, clock
from llama_gguf_bench.options import Options
from llama_gguf_bench.prompts import Body
from llama_gguf_bench.records import Record

MEASURES: Final[Mapping[str, str]] = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "latency": "whole response",
}
SIDES: Final = ("direct", "gateway")
CONFIDENCE: Final = 0.95

Pair = Mapping[str, Mapping[str, float]]
"""One block: the mean of each measure in seconds, by side."""


@dataclass(slots=True)
class Turns:
    """The results of all blocks with one number of streams."""

    streams: int
    pairs: list[Pair] = field(default_factory=list)
    failed: int = 0
    """Failed requests; their blocks are excluded."""
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False
    generator: Generator = field(default_factory=Generator)


@dataclass(frozen=True, slots=True)
class Added:
    """One measure on both sides, in seconds, and the difference: gateway - direct."""

    direct: float
    gateway: float
    median: Estimate
    mean: Estimate


async def take_turns(
    streams: int,
    options: Options,
    senders: Mapping[str, Sender],
    bodies: Iterator[Body],
    *,
    rng: random.Random,
    progress: Callable[[Turns, float], None] = lambda turns, share: None,
    now: Clock = clock,
) -> Turns:
    """Blocks of *streams* requests to each side, for the duration or a number of blocks.

    The first block is warm-up. When cancelled, it ends and returns the results so far.
    """
    turns, meter = Turns(streams), LagMeter(now)
    meter.start()
    try:
        await _block(streams, senders, bodies, rng=rng)
        begin = now()
        while (share := _share_done(turns, options, now() - begin)) < 1:
            progress(turns, share)
            if not _note(turns, await _block(streams, senders, bodies, rng=rng)):
                await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)
    except asyncio.CancelledError:
        turns.interrupted = True
        if task := asyncio.current_task():
            task.uncancel()  # the results so far are reported
    turns.generator = meter.stop()
    return turns


def _share_done(turns: Turns, options: Options, elapsed: float) -> float:
    if options.requests is not None:
        return (len(turns.pairs) + turns.failed) / options.requests
    return elapsed / options.duration


async def _block(
    streams: int, senders: Mapping[str, Sender], bodies: Iterator[Body], *, rng: random.Random
) -> Mapping[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for side in rng.sample(SIDES, k=len(SIDES)):
        records: list[Record] = []
        found[side] = records
        sender = senders[side]
        async with asyncio.TaskGroup() as group:
            for body in islice(bodies, streams):
                group.create_task(sender.send(body, records, intended=sender.now()))
    return found


def _note(turns: Turns, block: Mapping[str, list[Record]]) -> bool:
    """Add the block; return whether all of its requests succeeded."""
    wrong = [f"{side}: {r.error}" for side, records in block.items() for r in records if r.error]
    if wrong:
        turns.failed += len(wrong)
        turns.errors = list(dict.fromkeys([*turns.errors, *wrong]))
        return False
    turns.pairs.append({side: _means(records) for side, records in block.items()})
    return True


def _means(records: Sequence[Record]) -> dict[str, float]:
    found = {}
    for name in MEASURES:
        values = [v for r in records if (v := getattr(r, name)) is not None]
        if values:
            found[name] = statistics.fmean(values)
    return found


def added(pairs: Sequence[Pair], rng: random.Random) -> dict[str, Added]:
    """The latency that the gateway added, by measure, from blocks that have it on both sides."""
    found = {}
    for name in MEASURES:
        both = [
            (pair["direct"][name], pair["gateway"][name])
            for pair in pairs
            if name in pair["direct"] and name in pair["gateway"]
        ]
        if not both:
            continue
        differences = [gateway - direct for direct, gateway in both]
        found[name] = Added(
            direct=statistics.median(direct for direct, _ in both),
            gateway=statistics.median(gateway for _, gateway in both),
            median=bootstrap(differences, statistics.median, rng, confidence=CONFIDENCE),
            mean=bootstrap(differences, statistics.fmean, rng, confidence=CONFIDENCE),
        )
    return found


def as_json(turns: Turns, found: Mapping[str, Added]) -> dict[str, Any]:
    return {
        "streams": turns.streams,
        "blocks": len(turns.pairs),
        "failed": turns.failed,
        "errors": turns.errors,
        "interrupted": turns.interrupted,
        "generator": turns.generator.as_json(),
        "confidence": CONFIDENCE,
        "added": {
            f"{name}_seconds": {
                "direct": one.direct,
                "gateway": one.gateway,
                "median_difference": one.median.as_json(),
                "mean_difference": one.mean.as_json(),
            }
            for name, one in found.items()
        },
        "pairs": [
            {side: {n: round(v, 7) for n, v in means.items()} for side, means in pair.items()}
            for pair in turns.pairs
        ],
    }
