"""Compares two sides, of one run or several each: whether the differences exceed the noise.

1. Within a run, noise is the variation between its batches: a difference whose interval includes
   zero is noise. A comparison has many numbers, of which with 99 % each some would exceed it by
   chance: the intervals are widened so that 99 % hold for all of them together (Bonferroni).
2. Between runs, noise is what differs only from run to run, such as the machine's temperature. With
   several runs on both sides, a number has changed only if all runs of one side are beyond all of
   the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf_bench.estimates import Estimate, difference, pooled, widened
from llama_gguf_bench.results import Metrics, Run
from llama_gguf_bench.summary import RATES

BETTER: Final = "better"
WORSE: Final = "worse"
NOISE: Final = "noise"
UNKNOWN: Final = "cannot tell"
_MORE_IS_BETTER: Final = {m.name for m in RATES if not m.less_is_better}
_CIRCUMSTANCES: Final = ("settings", "model", "machine", "server", "versions")


@dataclass(frozen=True, slots=True)
class Change:
    """One metric on both sides."""

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


@dataclass(frozen=True, slots=True)
class Side:
    """The runs that are compared with those of the other side."""

    runs: Sequence[Run]

    @property
    def name(self) -> str:
        return ", ".join(run.name for run in self.runs)

    @property
    def document(self) -> Mapping[str, Any]:
        return self.runs[0].document

    @property
    def levels(self) -> dict[str, Metrics]:
        """By load, the metrics that all runs have."""
        first, *others = [run.levels for run in self.runs]
        return {
            load: {
                name: pooled([metrics[name], *(other[load][name] for other in others)])
                for name in metrics
                if all(name in other[load] for other in others)
            }
            for load, metrics in first.items()
            if all(load in other for other in others)
        }

    def values(self, load: str, metric: str) -> list[float]:
        """One for each run."""
        return [run.levels[load][metric].value for run in self.runs]


def changes(a: Side, b: Side) -> list[Change]:
    """Every metric that all runs have, by load."""
    first, second = a.levels, b.levels
    pairs = [
        (load, metric, estimate, second[load][metric])
        for load, metrics in first.items()
        for metric, estimate in metrics.items()
        if metric in second.get(load, {})
    ]
    count = sum(difference(x, y).low is not None for _, _, x, y in pairs)
    return [
        _change(a, b, load, metric, widened(difference(x, y), count), x, y)
        for load, metric, x, y in pairs
    ]


def _change(  # noqa: PLR0917
    a: Side, b: Side, load: str, metric: str, found: Estimate, x: Estimate, y: Estimate
) -> Change:
    found_verdict = verdict(metric, found)
    if found_verdict in (BETTER, WORSE) and _overlap(
        a.values(load, metric), b.values(load, metric)
    ):
        found_verdict = NOISE
    return Change(load, metric, x, y, found, found_verdict)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the runs of two sides overlap; a single one shows no range."""
    return len(a) > 1 and len(b) > 1 and max(a) >= min(b) and max(b) >= min(a)


def verdict(metric: str, found: Estimate) -> str:
    """1. Without bounds: unknown. 2. Zero within the bounds: noise. 3. Else the direction."""
    if found.low is None or found.high is None:
        return UNKNOWN
    if found.low <= 0 <= found.high:
        return NOISE
    return BETTER if (found.value > 0) == (metric in _MORE_IS_BETTER) else WORSE


def missing(a: Side, b: Side) -> list[str]:
    """Loads that only one of the sides has."""
    first, second = a.levels, b.levels
    return [f"{load}: only in {a.name}" for load in first if load not in second] + [
        f"{load}: only in {b.name}" for load in second if load not in first
    ]


def advice(a: Side, b: Side) -> list[str]:
    """How to exclude what differs from run to run, unless there are several runs."""
    if len(a.runs) > 1 and len(b.runs) > 1:
        return []
    return [
        "One run of a side does not show what differs from run to run, such as other load on the "
        "machine. If in doubt, run A, B, A, B and A, B again, and compare a1.json,a2.json,a3.json "
        "b1.json,b2.json,b3.json."
    ]


def circumstances(a: Side, b: Side) -> list[str]:
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
        return "The two sides have no load in common, so there is nothing to compare."
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
