from __future__ import annotations

import json

import pytest

from llama_gguf_bench.load import Level
from llama_gguf_bench.options import Load
from llama_gguf_bench.records import INTERRUPTED, Record
from llama_gguf_bench.responses import Response
from llama_gguf_bench.summary import as_json, is_within, slices, summarise
from tests.support.bench_runs import level, record
from tests.support.engines import sse, text_event


def test_work_counts_in_the_slices_in_which_it_was_done() -> None:
    spans = [(10.0, 0.0, 10.0), (4.0, 9.0, 11.0), (1.0, 3.0, 3.0), (7.0, 20.0, 30.0)]

    assert slices(spans, begin=0, end=10, count=2) == pytest.approx([5 + 1, 5 + 2])


@pytest.mark.parametrize(("begin", "end"), [(0.0, 12.0), (2.5, 7.3)])
def test_slices_lose_nothing_of_the_window(begin: float, end: float) -> None:
    spans = [(1.0, s / 3, s / 3 + 1.7) for s in range(-10, 60)]

    inside = sum((min(e, end) - max(b, begin)) / (e - b) for _, b, e in spans
                 if e > begin and b < end)  # fmt: skip
    assert sum(slices(spans, begin=begin, end=end, count=20)) == pytest.approx(inside)


def test_latencies_and_rates_are_computed_from_the_streams() -> None:
    found = summarise(level(streams=2), {}).metrics

    assert found["ttft_seconds.p50"].value == pytest.approx(0.2, rel=0.05)
    assert found["tpot_seconds.p50"].value == pytest.approx(0.05, rel=0.05)
    assert found["gap_seconds.p99"].value == pytest.approx(0.055, rel=0.05)
    assert found["latency_seconds.max"].value == pytest.approx(0.44, rel=0.05)
    assert found["requests_per_second"].value == pytest.approx(2 / 0.4, rel=0.03)
    assert found["output_tokens_per_second"].value == pytest.approx(10 / 0.4, rel=0.03)
    assert found["prompt_tokens_per_second"].value == pytest.approx(20 / 0.4, rel=0.03)
    assert found["stream_output_tokens_per_second"].value == pytest.approx(20, rel=0.05)
    assert found["stream_prompt_tokens_per_second"].value == pytest.approx(50, rel=0.05)
    assert found["error_share"].value == 0.0


def test_a_request_longer_than_the_window_counts_within_it_only() -> None:
    """100 tokens in 100 s, ten of them in the window."""
    long = record(0.0, ttft=0.0, gap=1.0, tokens=101)
    long.output_tokens = 100
    found = summarise(Level(Load(streams=1), [long], begin=40.0, end=50.0), {})

    assert found.metrics["output_tokens_per_second"].value == pytest.approx(1.0)
    assert found.counted == 0


def test_failures_have_kinds_and_no_latencies() -> None:
    failed = Record(5.0, 5.0, ended=5.001, error="status 429 rate_limit_exceeded")
    made = level(streams=1)
    made.records.append(failed)
    found = summarise(made, {})

    assert found.errors == {"status 429 rate_limit_exceeded": 1}
    assert found.metrics["error_share"].value == pytest.approx(1 / found.counted)
    assert found.metrics["latency_seconds.p50"].value > 0.1


def test_requests_interrupted_by_ctrl_c_are_neither_failures_nor_successes() -> None:
    cut = Record(5.0, 5.0, first=5.1, last=5.2, output_tokens=2, error=INTERRUPTED)
    made = level(streams=1)
    before = summarise(made, {}).counted
    made.records.append(cut)

    assert summarise(made, {}).counted == before
    assert not summarise(made, {}).errors


def test_a_level_without_responses_has_only_failures() -> None:
    found = summarise(Level(Load(rate=1.0), [], begin=0.0, end=0.0), {"ttft": 1.0})

    assert found.counted == 0
    assert not found.metrics


def test_an_slo_is_met_only_if_every_bound_is() -> None:
    fast, slow = record(0.0, ttft=0.2, gap=0.05), record(0.0, ttft=0.2, gap=0.5)

    assert is_within(fast, {"ttft": 0.3, "tpot": 0.06})
    assert not is_within(slow, {"ttft": 0.3, "tpot": 0.06})
    assert not is_within(fast, {"latency": 0.1})


def test_an_unknown_value_does_not_meet_an_slo() -> None:
    whole = Record(0.0, 0.0, ended=0.1, output_tokens=5)

    assert is_within(whole, {"latency": 1.0})
    assert not is_within(whole, {"ttft": 1.0})


def test_goodput_is_the_rate_of_requests_within_the_slo() -> None:
    everything = summarise(level(), {"ttft": 1.0}).metrics
    half = summarise(level(), {"ttft": 0.2}).metrics
    nothing = summarise(level(), {"ttft": 0.001}).metrics

    assert everything["goodput_per_second"] == everything["requests_per_second"]
    assert half["within_slo_share"].value == pytest.approx(0.5, abs=0.15)
    assert nothing["goodput_per_second"].value == 0.0


def test_tokens_are_summed_with_the_source_of_the_counts() -> None:
    found = summarise(Level(Load(streams=1), [record(0.0), record(1.0)], begin=0.0, end=2.0), {})

    assert found.tokens == {"prompt": 20, "cached": 4, "output": 10}
    assert found.counted_by == {"usage": 2}


def test_tokens_per_second_of_one_stream_match_llama_cpps_timings() -> None:
    """An engine that writes a token every 10 ms, with events that arrive 1 ms later."""
    count = 128
    made = Record(0.0, 0.0)
    response = Response(made, streamed=True)
    response.begin(200)
    for n in range(count):
        response.feed(text_event("x"), 0.5 + 0.010 * n + 0.001)
    timings = {"predicted_n": count, "predicted_ms": 10.0 * (count - 1), "prompt_n": 8}
    end = 0.5 + 0.010 * (count - 1) + 0.001
    response.feed(sse({"timings": timings}) + sse("[DONE]"), end)
    response.end(end)
    found = summarise(Level(Load(streams=1), [made], begin=0.0, end=end), {})

    assert found.engine_ratio == pytest.approx(1.0)
    theirs = 1000 * timings["predicted_n"] / timings["predicted_ms"]
    assert found.metrics["stream_output_tokens_per_second"].value == pytest.approx(theirs, rel=0.03)


def test_a_summary_is_plain_json() -> None:
    document = json.loads(json.dumps(as_json(summarise(level(), {"ttft": 1.0}))))

    assert (
        document["metrics"]["ttft_seconds.p50"]["low"]
        < document["metrics"]["ttft_seconds.p50"]["high"]
    )
