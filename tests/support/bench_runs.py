"""Records, levels and files of benchmark runs, computed instead of measured."""

from __future__ import annotations

import random
from array import array
from typing import Any

from llama_gguf_bench import results
from llama_gguf_bench.load import Level
from llama_gguf_bench.options import Load
from llama_gguf_bench.records import Record
from llama_gguf_bench.results import Circumstances
from llama_gguf_bench.summary import summarise

CIRCUMSTANCES = Circumstances(
    url="http://127.0.0.1:8000",
    backend_url="",
    date="2026-11-22T10:00:00+00:00",
    command=("llama-gguf", "bench", "--concurrency", "2"),
    versions={"llama-gguf": "1"},
    machine={"cpu": "a CPU", "cpus": 2, "gpu": "none"},
    server={"models": ["tiny"], "engine": "b1", "gateway": "", "slots": 4, "context": 256},
    model={"name": "Tiny <1B>"},
    settings={"prompt_tokens": [64], "output_tokens": 5, "streamed": True, "shared_prefix": 0,
              "prompts_file": ""},
)  # fmt: skip


def record(begin: float, *, ttft: float = 0.2, gap: float = 0.05, tokens: int = 5) -> Record:
    """A stream of *tokens* tokens at an even pace, with one event per token."""
    last = begin + ttft + gap * (tokens - 1)
    return Record(
        begin,
        begin,
        first=begin + ttft,
        last=last,
        gaps=array("d", [gap] * (tokens - 1)),
        ended=last,
        prompt_tokens=10,
        cached_tokens=2,
        output_tokens=tokens,
        counted_by="usage",
    )


def level(*, streams: int = 2, seconds: float = 20.0, slower: float = 1.0, seed: int = 0) -> Level:
    """*streams* streams of consecutive requests, with times that vary by a tenth."""
    rng = random.Random(seed)
    records = []
    for _ in range(streams):
        now = 0.0
        while now < seconds:
            pace = slower * rng.uniform(0.9, 1.1)
            records.append(record(now, ttft=0.2 * pace, gap=0.05 * pace))
            now = records[-1].ended or seconds
    records.sort(key=lambda r: r.intended)
    return Level(Load(streams=streams), records, begin=1.0, end=seconds)


def document(*levels: Level, **changes: Any) -> dict[str, Any]:
    rows = [results.level_json(each, summarise(each, {})) for each in levels]
    return CIRCUMSTANCES.as_json() | {"levels": rows} | changes
