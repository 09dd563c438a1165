from __future__ import annotations

import json
from typing import Any

import pytest

from llama_gguf_bench import compare, results
from llama_gguf_bench.compare import BETTER, NOISE, UNKNOWN, WORSE
from llama_gguf_bench.estimates import Estimate
from llama_gguf_bench.results import Run
from tests.support.bench_runs import document, level


def run(name: str, **made: Any) -> Run:
    return results.read(name, json.dumps(document(level(seconds=60, **made))))


def verdicts(a: Run, b: Run) -> dict[str, str]:
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
    a = results.read("a", json.dumps(document(level())))
    b = results.read("b", json.dumps(document(level(), machine={"cpu": "b CPU", "cpus": 2})))

    assert compare.circumstances(a, a) == []
    assert compare.circumstances(a, b) == [
        "machine cpu: a CPU -> b CPU",
        "machine gpu: none -> none given",
    ]


def test_another_seed_is_not_listed_as_a_difference() -> None:
    one, other = (
        results.read("x", json.dumps(document(level(), settings={"seed": seed, "chat": True})))
        for seed in (1, 2)
    )

    assert compare.circumstances(one, other) == []


def test_the_outcome_is_plain_json_and_a_sentence() -> None:
    found = list(compare.changes(run("a"), run("b", slower=1.5)))

    result = json.loads(json.dumps(compare.as_json(found, ["x"])))
    assert result["changes"][0].keys() == {"load", "metric", "a", "b", "difference", "verdict"}
    assert " worse" in compare.verdict_sentence(found)
