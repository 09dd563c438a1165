from __future__ import annotations

import json

import pytest

from llama_gguf.errors import UserError
from llama_gguf_bench import results
from llama_gguf_bench.overhead import Turns, added, as_json
from llama_gguf_bench.records import Record
from tests.support.bench_runs import CIRCUMSTANCES, document, level


def test_a_file_reads_back_with_every_number() -> None:
    run = results.read("a.json", json.dumps(document(level(streams=1), level(streams=4))))

    assert list(run.levels) == ["1 stream", "4 streams"]
    assert run.levels["4 streams"]["ttft_seconds.p50"].value == pytest.approx(0.2, rel=0.1)


def test_a_file_contains_what_a_repetition_needs() -> None:
    result = document(level())

    assert result["command"] == "llama-gguf bench --concurrency 2"
    assert result.keys() >= {"date", "versions", "machine", "server", "model", "settings"}
    assert len(result["levels"][0]["records"]) == len(level().records)


def test_a_file_of_overhead_reads_back_too() -> None:
    import random  # noqa: PLC0415

    pair = {"direct": {"ttft": 0.1}, "gateway": {"ttft": 0.2}}
    turns = Turns(4, pairs=[pair] * 9)
    overhead = [as_json(turns, added(turns.pairs, random.Random(1)))]

    run = results.read("a.json", json.dumps(CIRCUMSTANCES.as_json() | {"overhead": overhead}))

    assert run.levels["added at 4"]["added_ttft_seconds"].value == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"format": "llama-gguf bench 1", "levels": 3}',
     '{"format": "llama-gguf bench 1", "levels": [{"load": {}}]}'],
)  # fmt: skip
def test_a_file_of_another_kind_is_rejected(text: str) -> None:
    with pytest.raises(
        UserError, match=r"a\.json is not a file written by `llama-gguf bench --json`"
    ):
        results.read("a.json", text)


def test_another_format_is_named() -> None:
    with pytest.raises(UserError, match="has the format 'llama-gguf bench 9'"):
        results.read("a.json", '{"format": "llama-gguf bench 9"}')


def test_lateness_is_the_delay_against_the_intended_time() -> None:
    records = [Record(intended=1.0, started=1.0 + n / 1000) for n in range(101)]

    assert results.lateness(records) == pytest.approx(0.099)
    assert results.lateness([]) == 0.0
