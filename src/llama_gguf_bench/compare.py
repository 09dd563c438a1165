"""Compares two runs: the differences, and whether they exceed the noise.

The noise is the variation within each run. Two runs of the same server may also differ for
reasons that vary only between runs, such as the machine's temperature: if in doubt, run A, B, A, B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf_bench.estimates import Estimate, difference
from llama_gguf_bench.results import Run
from llama_gguf_bench.summary import RATES

BETTER: Final = "better"
WORSE: Final = "worse"
NOISE: Final = "noise"
UNKNOWN: Final = "cannot tell"
_MORE_IS_BETTER: Final = {m.name for m in RATES if not m.less_is_better}
_CIRCUMSTANCES: Final = ("settings", "model", "machine", "server", "versions")


@dataclass(frozen=True, slots=True)
class Change:
    """One metric in both runs."""

    load: str
    metric: str
    a: Estimate
    b: Estimate
    difference: Estimate
    verdict: str

    @property
    def share(self) -> float | None:
        """The difference as a fraction of A."""
        return self.difference.value / self.a.value if self.a.value else None


def changes(a: Run, b: Run) -> Iterator[Change]:
    """Every metric that both runs have, by load."""
    for load, metrics in a.levels.items():
        others = b.levels.get(load, {})
        for metric, first in metrics.items():
            if metric in others:
                yield _change(load, metric, first, others[metric])


def _change(load: str, metric: str, a: Estimate, b: Estimate) -> Change:
    found = difference(a, b)
    return Change(load, metric, a, b, found, verdict(metric, found))


def verdict(metric: str, found: Estimate) -> str:
    """1. Without bounds: unknown. 2. Zero within the bounds: noise. 3. Else the direction."""
    if found.low is None or found.high is None:
        return UNKNOWN
    if found.low <= 0 <= found.high:
        return NOISE
    return BETTER if (found.value > 0) == (metric in _MORE_IS_BETTER) else WORSE


def missing(a: Run, b: Run) -> list[str]:
    """Loads that only one of the runs has."""
    return [f"{load}: only in {a.name}" for load in a.levels if load not in b.levels] + [
        f"{load}: only in {b.name}" for load in b.levels if load not in a.levels
    ]


def circumstances(a: Run, b: Run) -> list[str]:
    """The other differences, which may explain a change of the metrics."""
    found = []
    for part in _CIRCUMSTANCES:
        first, second = _flat(a.document.get(part)), _flat(b.document.get(part))
        # Another seed gives other prompts of the same length, which explains no change.
        for name in sorted((first.keys() | second.keys()) - {"seed"}):
            if (was := first.get(name)) != (now := second.get(name)):
                found.append(f"{part} {name}: {_text(was)} -> {_text(now)}")  # noqa: PERF401  # more readable
    return found


def _flat(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return "none given" if value is None else str(value)


def verdict_sentence(found: Sequence[Change]) -> str:
    """How many of the numbers changed, in one line."""
    counts = Counter(change.verdict for change in found)
    if not found:
        return "The two runs have no load in common, so there is nothing to compare."
    parts = [f"{counts[v]} {v}" for v in (BETTER, WORSE, NOISE, UNKNOWN) if counts[v]]
    return f"{len(found)} numbers: {', '.join(parts)}."


def as_json(found: Sequence[Change], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "notes": list(notes),
        "changes": [
            {
                "load": c.load,
                "metric": c.metric,
                "a": c.a.as_json(),
                "b": c.b.as_json(),
                "difference": c.difference.as_json(),
                "verdict": c.verdict,
            }
            for c in found
        ],
    }
