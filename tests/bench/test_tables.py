from __future__ import annotations

import csv
import random

import pytest

from llama_gguf_bench import compare, tables
from llama_gguf_bench.estimates import Estimate
from llama_gguf_bench.lag import Generator
from llama_gguf_bench.load import Level
from llama_gguf_bench.options import Load
from llama_gguf_bench.overhead import Pair, Turns, added
from llama_gguf_bench.records import INTERRUPTED, Record
from llama_gguf_bench.summary import Summary, summarise
from tests.bench.test_compare import run
from tests.support.bench_runs import level

SLO = {"ttft": 1.0}


def results(*levels: Level) -> list[tuple[Level, Summary]]:
    return [(each, summarise(each, SLO)) for each in levels]


def table(*levels: Level) -> dict[str, list[str]]:
    return {name: cells for name, *cells in tables.rows(results(*levels))}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"),
     (0, "0"), (-12.34, "-12.3")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert tables.number(value) == text


def test_the_table_has_one_column_per_load_and_one_row_per_metric() -> None:
    made = results(level(streams=1), level(streams=4))

    assert tables.columns(made) == ("", "1 stream", "4 streams")
    rows = table(level(streams=1), level(streams=4))
    assert float(rows["time to first token p50 ms"][0]) == pytest.approx(200, rel=0.05)
    assert float(rows["requests /s"][1]) == pytest.approx(10, rel=0.05)
    assert rows["requests within SLO %"] == ["100", "100"]
    assert rows["cached prompt tokens %"] == ["20.0", "20.0"]


def test_rows_without_numbers_are_omitted() -> None:
    assert "queue length, maximum" not in table(level())
    assert "tokens/s, % of llama.cpp's value" not in table(level())


def test_the_servers_facts_have_rows() -> None:
    made = level()
    made.server = {"slots_used_mean": 3.5, "queue_max": 8, "queue_wait_mean_seconds": 0.25}

    rows = table(made)

    assert rows["queue length, maximum"] == ["8"]
    assert rows["wait in queue, mean ms"] == ["250"]
    assert rows["slots used, mean"] == ["3.50"]


def test_notes_explain_the_numbers() -> None:
    made = level()
    made.records.append(Record(5.0, 5.0, error="status 429 rate_limit_exceeded"))
    made.records.append(Record(6.0, 6.0, error=INTERRUPTED))
    made.interrupted, made.sent_again = True, 3
    made.generator = Generator(lag_p99=0.02)

    notes = tables.notes(results(made))

    assert notes == [
        "2 streams: interrupted after 20.0 s, 1 unfinished requests excluded.",
        "2 streams: 1 x status 429 rate_limit_exceeded",
        f"2 streams: {tables.RATE_LIMITED}",
        "2 streams: the load generator's event loop was late by up to 20.0 ms (p99): "
        "measured latencies may be too high by this amount.",
        "2 streams: 3 kept connections were closed by the server.",
        "Tokens are counted from: the server's usage.",
    ]


def test_a_level_without_counted_requests_has_a_note() -> None:
    assert tables.notes(results(Level(Load(streams=1), []))) == [
        "1 stream: no request was counted; use a longer --duration."
    ]


def test_csv_has_one_line_per_number_in_seconds() -> None:
    lines = list(csv.DictReader(tables.as_csv(results(level())).splitlines()))

    ttft = next(line for line in lines if line["metric"] == "ttft_seconds.p50")
    assert float(ttft["value"]) == pytest.approx(0.2, rel=0.05)
    assert float(ttft["low"]) <= float(ttft["value"]) <= float(ttft["high"])
    assert (ttft["streams"], ttft["rate"]) == ("2", "")


def test_overhead_is_shown_with_its_interval() -> None:
    rng = random.Random(1)
    pairs: list[Pair] = [
        {"direct": {"ttft": 0.1}, "gateway": {"ttft": 0.1002 + rng.gauss(0, 0.00002)}}
        for _ in range(50)
    ]
    found = [(Turns(4, pairs=pairs, failed=2, errors=["gateway: timeout"]), added(pairs, rng))]

    (row,) = tables.added_rows(found)

    assert row[:5] == ("time to first token ms", "4", "50", "100", "100")
    assert row[5].startswith("+0.20")
    assert " to +0.2" in row[5]
    assert tables.added_notes(found) == ["4 streams: 2 requests failed: gateway: timeout"]
    assert tables.added_csv(found).count("added_ttft_seconds") == 2


def test_few_pairs_have_no_interval() -> None:
    assert tables.with_bounds(Estimate(0.001)) == "+1.00"


def test_interrupted_and_late_turns_have_notes() -> None:
    turns = Turns(1, interrupted=True, generator=Generator(cpu_share=0.9))

    notes = tables.added_notes([(turns, {})])

    assert notes[0] == "1 stream: interrupted."
    assert "both sides are affected" in notes[1]


def test_a_comparison_has_values_change_bounds_and_verdict() -> None:
    changes = list(compare.changes(run("a"), run("b", slower=1.5)))

    row = next(r for r in tables.change_rows(changes) if r[1] == "time to first token p50 ms")

    assert row[0] == "2 streams"
    assert float(row[3]) == pytest.approx(300, rel=0.05)
    assert row[4].startswith("+")
    assert " to +" in row[5]
    assert row[6] == "worse"


def test_metrics_have_readable_names() -> None:
    assert tables.titled("ttft_seconds.p99") == ("time to first token p99", "ms")
    assert tables.titled("added_tpot_seconds") == ("added to time per output token", "ms")
    assert tables.titled("error_share") == ("failed requests", "%")
