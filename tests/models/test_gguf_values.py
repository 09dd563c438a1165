from __future__ import annotations

import pytest

from llama_gguf.models.gguf_values import Array, GgufValue, per_layer, text, whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, (7, 7, 7)),
        (True, (1, 1, 1)),
        (Array(3, (1, 0, 2)), (1, 0, 2)),
        (Array(4, (1, 0, 2, 5)), (1, 0, 2, 5)),
        (Array(2, (1, 0)), None),
        (Array(3), None),
        ("7", None),
        (7.0, None),
    ],
)
def test_a_value_per_layer_is_a_number_for_all_or_an_array_for_each(
    value: GgufValue, expected: tuple[int, ...] | None
) -> None:
    assert per_layer({"key": value}, "key", 3) == expected
    assert per_layer({}, "key", 3) is None


def test_a_flag_is_no_number_and_a_number_is_no_text() -> None:
    assert whole({"key": True}, "key") is None
    assert whole({"key": 3}, "key") == 3
    assert text({"key": 3}, "key") == ""
    assert text({"key": "a\x1b[2Jb"}, "key") == "a[2Jb"
