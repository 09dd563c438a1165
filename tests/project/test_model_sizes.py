"""The examples of docs/choosing-a-model.md."""

from __future__ import annotations

import pytest

from docs.model_sizes import CHOICES, GB, LLAMA_8B, QWEN3_30B, Choice, Shape, facts, on_gpu


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.gigabytes} GB {c.shape.name}")
def test_each_example_fits_with_a_reserve_of_a_twentieth(choice: Choice) -> None:
    assert on_gpu(choice) < 0.95 * choice.gigabytes * GB


@pytest.mark.parametrize(
    ("shape", "billions"), [(LLAMA_8B, 8.03), (QWEN3_30B, 30.53)], ids=["dense", "with experts"]
)
def test_the_tensors_have_the_number_of_parameters_that_is_published(
    shape: Shape, billions: float
) -> None:
    found = facts(shape, "Q8_0")

    assert found.parameters is not None
    assert found.parameters / 1e9 == pytest.approx(billions, abs=0.005)
