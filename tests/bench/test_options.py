from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_gguf_bench.options import (
    Load,
    Options,
    parse_counts,
    parse_rates,
    parse_seconds,
    parse_slo,
)


def test_numbers_are_separated_by_commas() -> None:
    assert parse_counts("1,2, 64") == (1, 2, 64)
    assert parse_rates("0.5,2") == (0.5, 2.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2.0), ("2.5s", 2.5), ("20", 20.0), ("0", 0.0)]
)
def test_durations_have_a_unit_or_are_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


def test_an_slo_has_bounds_by_name() -> None:
    assert parse_slo("ttft=500ms, tpot=50ms,latency=30") == {
        "ttft": 0.5,
        "tpot": 0.05,
        "latency": 30.0,
    }


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_counts, "0"),
        (parse_counts, "1,,2"),
        (parse_counts, "-1"),
        (parse_counts, "1.5"),
        (parse_counts, "\u0663"),
        (parse_rates, "0"),
        (parse_rates, "1e3"),
        (parse_rates, "inf"),
        (parse_seconds, "soon"),
        (parse_seconds, "5min"),
        (parse_slo, "ttft"),
        (parse_slo, "speed=5ms"),
        (parse_slo, "ttft=quick"),
    ],
)
def test_other_texts_are_rejected(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


def test_a_load_is_described_in_words() -> None:
    assert [Load(streams=1).text, Load(streams=8).text, Load(rate=0.5).text] == [
        "1 stream",
        "8 streams",
        "0.5/s",
    ]


def test_the_path_is_chat_or_completions() -> None:
    assert Options(loads=()).path == "/v1/chat/completions"
    assert Options(loads=(), chat=False).path == "/v1/completions"


def test_options_are_part_of_the_results() -> None:
    document = Options(loads=(Load(streams=2),), seed=7).as_json()

    assert document["loads"] == ({"streams": 2, "rate": None},)
    assert document["seed"] == 7
