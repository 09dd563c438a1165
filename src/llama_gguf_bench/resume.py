"""How fast a known conversation continues after the engine was stopped.

Each conversation is sent three times: when it is new, again at once, and after the engine was
stopped and started. The last is as fast as the second if the engine's prompt cache survives a stop,
and else as slow as the first.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.errors import UserError
from llama_gguf_bench.connection import Connections, Target
from llama_gguf_bench.load import Sender, clock
from llama_gguf_bench.options import Options
from llama_gguf_bench.records import Record
from llama_gguf_bench.session import Prepared, prepare

NEW, AGAIN, RESUMED = STEPS = ("new", "again", "after a stop")
DEFAULT_CONVERSATIONS: Final = 3
COLUMNS: Final = ("", "first token ms", "prompt tokens", "computed")


@dataclass(frozen=True, slots=True)
class Step:
    """The same conversations, once."""

    name: str
    records: Sequence[Record]

    @property
    def first_token(self) -> float:
        """Seconds, the median."""
        return statistics.median(record.ttft or 0.0 for record in self.records)

    @property
    def prompt_tokens(self) -> float:
        return statistics.median(record.prompt_tokens or 0 for record in self.records)

    @property
    def computed(self) -> float | None:
        """Tokens of a prompt that were not cached, the median; None if that is not reported."""
        if any(record.cached_tokens is None for record in self.records):
            return None
        return statistics.median(
            (record.prompt_tokens or 0) - (record.cached_tokens or 0) for record in self.records
        )


async def run(
    target: Target,
    options: Options,
    lines: Sequence[str] | None,
    *,
    restart: Callable[[], Awaitable[None]],
    progress: Callable[[str, float], None],
) -> tuple[Prepared, list[Step]]:
    """Measure.

    Args:
        target: the server.
        options: of the requests; ``requests`` is the number of conversations.
        lines: of the prompts file, if there is one.
        restart: stops the engine, and starts it again.
        progress: called with what is done, and its share of all.

    Raises:
        UserError: the server does not respond as expected, or has failed a request.
    """
    with closing(Connections(target, clock, keeps=options.keeps_connections)) as connections:
        prepared = await prepare(connections, options, lines)
        sender = Sender(connections, options, prepared.fixed)
        count = options.requests or DEFAULT_CONVERSATIONS
        bodies = list(itertools.islice(prepared.bodies, count))
        steps: list[Step] = []
        for number, name in enumerate(STEPS):
            progress(name, number / len(STEPS))
            if name == RESUMED:
                await restart()
            records = [await sender.send(body, [], intended=clock()) for body in bodies]
            failed = next((record.error for record in records if not record.ok), "")
            if failed:
                raise UserError(f"{target.url}: a request has failed: {failed}.")
            steps.append(Step(name, records))
    return prepared, steps


def rows(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    return [
        (
            step.name,
            f"{1000 * step.first_token:.0f}",
            f"{step.prompt_tokens:.0f}",
            "-" if step.computed is None else f"{step.computed:.0f}",
        )
        for step in steps
    ]


def verdict(steps: Sequence[Step]) -> str:
    """The result, in a sentence."""
    by_name = {step.name: step for step in steps}
    ratio = by_name[RESUMED].first_token / (by_name[NEW].first_token or 1.0)
    return (
        f"After a stop of the engine, the first token of a known conversation takes {ratio:.2f} "
        "times as long as that of a new one."
    )


def as_csv(steps: Sequence[Step]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("step", "first_token_ms", "prompt_tokens", "computed_tokens"))
    writer.writerows(rows(steps))
    return out.getvalue()


def as_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        {
            "step": step.name,
            "first_token_seconds": round(step.first_token, 6),
            "prompt_tokens": step.prompt_tokens,
            "computed_tokens": step.computed,
            "requests": [record.as_json() for record in step.records],
        }
        for step in steps
    ]
