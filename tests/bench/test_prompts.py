from __future__ import annotations

from itertools import islice

import pytest

from llama_gguf.errors import UserError
from llama_gguf_bench.prompts import CALIBRATION_WORDS, Scale, from_lines, scale_of, synthetic

SCALE = Scale(template=10, per_word=2)


def texts(
    count: int, *, tokens: tuple[int, ...] = (50,), prefix: int = 0, seed: int = 0
) -> list[str]:
    bodies = synthetic(tokens, scale=SCALE, shared_prefix=prefix, chat=False, seed=seed)
    return [body["prompt"] for body in islice(bodies, count)]


def test_two_counts_determine_the_tokens_per_word() -> None:
    few, many = CALIBRATION_WORDS

    assert scale_of([10 + 2 * few, 10 + 2 * many]) == SCALE


@pytest.mark.parametrize("counts", [[None, None], [5, None], [9, 9]])
def test_without_token_counts_a_word_is_one_token(counts: list[int | None]) -> None:
    assert scale_of(counts) == Scale(0, 1)


def test_prompts_have_the_requested_lengths_in_turn() -> None:
    lengths = [10 + 2 * len(text.split()) for text in texts(4, tokens=(50, 110))]

    assert lengths == [50, 110, 50, 110]


def test_all_prompts_differ_and_are_determined_by_the_seed() -> None:
    assert len(set(texts(50))) == 50
    assert texts(5) == texts(5)
    assert texts(5) != texts(5, seed=1)


def test_every_prompt_begins_with_the_shared_prefix() -> None:
    first, second = (text.split() for text in texts(2, prefix=40))

    assert first[:20] == second[:20]
    assert first[20:] != second[20:]
    assert len(first) == 20 + 20


def test_a_length_below_the_templates_is_rejected_with_the_minimum() -> None:
    with pytest.raises(UserError, match="--prompt-tokens 12: the minimum for this server is 18"):
        synthetic((12,), scale=SCALE, shared_prefix=0, chat=True, seed=0)


def test_chat_prompts_are_messages() -> None:
    body = next(synthetic((50,), scale=SCALE, shared_prefix=0, chat=True, seed=0))

    assert body["messages"][0]["role"] == "user"


def test_lines_are_strings_prompts_or_messages() -> None:
    lines = ['"hi"', "", '{"prompt": "ho", "max_tokens": 3}', '{"messages": [], "top_p": 1}']

    assert from_lines(lines, chat=True) == [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "ho"}], "max_tokens": 3},
        {"messages": [], "top_p": 1},
    ]
    assert from_lines(lines[:1], chat=False) == [{"prompt": "hi"}]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2 is not JSON"),
        ("3", "line 2 is neither"),
        ('{"text": "x"}', "line 2 is neither"),
    ],
)
def test_an_invalid_line_is_named(line: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        from_lines(['"fine"', line], chat=True)


def test_messages_are_rejected_for_completions() -> None:
    with pytest.raises(UserError, match='neither a string nor an object with "prompt"'):
        from_lines(['{"messages": []}'], chat=False)


def test_an_empty_file_is_rejected() -> None:
    with pytest.raises(UserError, match="the file is empty"):
        from_lines(["", "  "], chat=True)
