from __future__ import annotations

import json
from typing import Any

import pytest

from llama_gguf_bench import compare, results
from llama_gguf_bench.compare import BETTER, NOISE, UNKNOWN, WORSE, Side
from llama_gguf_bench.estimates import Estimate, difference
from llama_gguf_bench.results import Run
from tests.support.bench_runs import document, level


def read(name: str, **made: Any) -> Run:
    return results.read(name, json.dumps(document(level(seconds=60, **made))))


def run(name: str, **made: Any) -> Side:
    return Side([read(name, **made)])


def runs(*slower: float, seed: int = 0) -> Side:
    """One run for each factor."""
    return Side([read(f"r{i}", slower=s, seed=seed + i) for i, s in enumerate(slower)])


def verdicts(a: Side, b: Side) -> dict[str, str]:
    return {change.metric: change.verdict for change in compare.changes(a, b)}


def test_two_runs_of_the_same_thing_differ_by_noise() -> None:
    for seed in range(1, 6):
        found = verdicts(run("a"), run("b", seed=seed))

        assert set(found.values()) <= {NOISE, UNKNOWN}
        assert found["ttft_seconds.p50"] == NOISE


def test_a_slower_run_is_worse_in_latencies_and_in_rates() -> None:
    found = verdicts(run("a"), run("b", slower=1.2, seed=1))

    assert found["ttft_seconds.p50"] == WORSE
    assert found["output_tokens_per_second"] == WORSE
    assert found["gap_seconds.p90"] == WORSE
    assert found["error_share"] == NOISE


def test_a_faster_run_is_better() -> None:
    found = verdicts(run("a", slower=1.2), run("b", seed=1))

    assert (found["latency_seconds.p50"], found["requests_per_second"]) == (BETTER, BETTER)


def test_a_difference_between_runs_that_overlap_is_noise() -> None:
    """The same machine, which is sometimes slower: single runs show a difference."""
    single = verdicts(run("a"), run("b", slower=1.1, seed=9))
    several = verdicts(runs(1.0, 1.1, 1.02), runs(1.1, 1.05, 1.12, seed=9))

    assert single["ttft_seconds.p50"] == WORSE
    assert several["ttft_seconds.p50"] == NOISE


def test_a_difference_that_all_runs_show_is_none() -> None:
    found = verdicts(runs(1.0, 1.02, 0.98), runs(1.2, 1.25, 1.22, seed=9))

    assert found["ttft_seconds.p50"] == WORSE
    assert found["requests_per_second"] == WORSE


def test_a_value_of_several_runs_is_their_mean() -> None:
    side = runs(1.0, 1.2)
    singles = [one.levels["2 streams"]["ttft_seconds.p50"].value for one in side.runs]

    assert side.levels["2 streams"]["ttft_seconds.p50"].value == pytest.approx(sum(singles) / 2)


def test_the_bounds_hold_for_all_numbers_together() -> None:
    a, b = run("a"), run("b", seed=1)
    (found,) = [c for c in compare.changes(a, b) if c.metric == "ttft_seconds.p50"]
    one = difference(found.a, found.b)

    assert found.difference.low is not None
    assert one.low is not None
    assert found.difference.low < one.low


def test_single_runs_come_with_advice() -> None:
    assert compare.advice(run("a"), runs(1.0, 1.0)) != []
    assert compare.advice(runs(1.0, 1.0), runs(1.0, 1.0)) == []


def test_the_maximum_is_not_compared() -> None:
    assert verdicts(run("a"), run("b", slower=2.0))["ttft_seconds.max"] == UNKNOWN


@pytest.mark.parametrize(
    ("metric", "found", "expected"),
    [
        ("ttft_seconds.p50", Estimate(-1, -2, -0.5), BETTER),
        ("ttft_seconds.p50", Estimate(1, 0.5, 2), WORSE),
        ("requests_per_second", Estimate(1, 0.5, 2), BETTER),
        ("requests_per_second", Estimate(1, -0.5, 2), NOISE),
        ("within_slo_share", Estimate(0, 0, 0), NOISE),
        ("requests_per_second", Estimate(1, None, 2), UNKNOWN),
    ],
)
def test_the_verdict_follows_the_bounds(metric: str, found: Estimate, expected: str) -> None:
    assert compare.verdict(metric, found) == expected


def test_loads_of_only_one_run_are_named() -> None:
    a, b = run("a", streams=1), run("b", streams=2)

    assert list(compare.changes(a, b)) == []
    assert compare.missing(a, b) == ["1 stream: only in a", "2 streams: only in b"]
    assert "nothing to compare" in compare.verdict_sentence([])


def test_other_differences_are_listed() -> None:
    a = Side([results.read("a", json.dumps(document(level())))])
    other = document(level(), machine={"cpu": "b CPU", "cpus": 2})
    b = Side([results.read("b", json.dumps(other))])

    assert compare.circumstances(a, a) == []
    assert compare.circumstances(a, b) == [
        "machine cpu: a CPU -> b CPU",
        "machine gpu: none -> none given",
    ]


def test_another_seed_is_not_listed_as_a_difference() -> None:
    one, other = (
        Side([results.read("x", json.dumps(document(level(), settings={"seed": seed})))])
        for seed in (1, 2)
    )

    assert compare.circumstances(one, other) == []


def test_the_outcome_is_plain_json_and_a_sentence() -> None:
    found = list(compare.changes(run("a"), run("b", slower=1.5)))

    result = json.loads(json.dumps(compare.as_json(found, ["x"])))
    assert result["changes"][0].keys() == {"load", "metric", "a", "b", "difference", "verdict"}
    assert " worse" in compare.verdict_sentence(found)
