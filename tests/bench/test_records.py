from __future__ import annotations

import pytest

from llama_gguf_bench.records import Record
from tests.support.bench_runs import record


def test_latencies_count_from_the_intended_time() -> None:
    late = Record(intended=1.0, started=4.0, first=5.0, ended=6.0)

    assert late.ttft == 4.0
    assert late.latency == 5.0


def test_time_per_output_token_excludes_the_first() -> None:
    assert record(0.0, ttft=9.0, gap=0.05, tokens=5).tpot == pytest.approx(0.05)


def test_one_token_has_no_time_per_token() -> None:
    assert record(0.0, tokens=1).tpot is None


def test_a_record_has_first_last_and_every_gap() -> None:
    made = Record(intended=0.0, started=0.0)

    for moment in (1.0, 1.5, 1.75):
        made.token(moment)

    assert (made.first, made.last, list(made.gaps)) == (1.0, 1.75, [0.5, 0.25])


def test_a_failed_or_incomplete_response_is_not_ok() -> None:
    assert record(0.0).ok
    assert not Record(0.0, 0.0).ok
    assert not Record(0.0, 0.0, ended=1.0, error="cut short").ok


def test_times_are_shifted_together() -> None:
    moved = record(100.0)

    moved.shift(100.0)

    assert (moved.intended, moved.started) == (0.0, 0.0)
    assert moved.first == pytest.approx(0.2)
    assert moved.connected is None


def test_a_written_record_reads_back_to_the_microsecond() -> None:
    made = record(1.0000004)

    again = Record.from_json(made.as_json())

    assert again.intended == 1.0
    assert again.gaps[0] == pytest.approx(0.05)
    assert again.output_tokens == 5


def test_an_invalid_row_is_rejected() -> None:
    with pytest.raises(TypeError):
        Record.from_json({"intended": 0.0, "colour": "red"})
