from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.telemetry.engine_metrics import MAX_METRICS, PREFIX, parse

TEXT: Final = (Path(__file__).parent / "answers" / "metrics.http").read_bytes()


def test_all_of_llama_server_s_metrics_get_our_prefix() -> None:
    values = {found.name: found.value for found in parse(TEXT)}

    assert values == {
        "llama_gguf_engine_prompt_tokens": 43,
        "llama_gguf_engine_prompt_seconds": 0.412,
        "llama_gguf_engine_tokens_predicted": 54,
        "llama_gguf_engine_tokens_predicted_seconds": 0.549,
        "llama_gguf_engine_n_decode": 54,
        "llama_gguf_engine_n_tokens_max": 38,
        "llama_gguf_engine_prompt_tokens_per_second": 104.369,
        "llama_gguf_engine_predicted_tokens_per_second": 98.3607,
        "llama_gguf_engine_requests_processing": 0,
        "llama_gguf_engine_requests_deferred": 0,
        "llama_gguf_engine_n_busy_slots_per_decode": 1,
    }


def test_metrics_keep_their_help_and_are_counters_only_if_their_name_ends_in_total() -> None:
    found = {f.name: f for f in parse(TEXT)}

    assert found["llama_gguf_engine_n_decode"].type == "counter"
    assert found["llama_gguf_engine_n_tokens_max"].type == "gauge"
    help_text = found["llama_gguf_engine_requests_deferred"].help
    assert help_text == "llama-server: Number of requests deferred."


@pytest.mark.parametrize(
    "line",
    [
        b'llamacpp:x{a="b"} 1',
        b"llamacpp:x NaN",
        b"llamacpp:x 1e999",
        b"llamacpp:x +-1",
        b"llamacpp:X 1",
        b"llamacpp:x 1 1700000000000",
        b"vllm:x 1",
        b"llamacpp:" + b"x" * 200 + b" 1",
        b"llamacpp:x\xff 1",
    ],
)
def test_other_lines_are_ignored(line: bytes) -> None:
    assert [f.value for f in parse(line + b"\nllamacpp:y 2\n")] == [2]


def test_the_number_of_metrics_is_bounded() -> None:
    lines = b"".join(b"llamacpp:m%d 1\n" % n for n in range(10 * MAX_METRICS))

    assert len(parse(lines)) == MAX_METRICS


@given(text=st.binary(max_size=300), at=st.integers(0, 1600))
def test_any_bytes_give_metrics_or_none(text: bytes, at: int) -> None:
    for found in parse(TEXT[:at] + text + TEXT[at:]):
        assert found.name.startswith(PREFIX)
