from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.telemetry.histogram import (
    DURATION_BUCKETS,
    FIRST_BYTE_BUCKETS,
    TOKEN_BUCKETS,
    Histogram,
)


@given(seconds=st.floats(0, 1e5))
def test_an_observation_is_in_the_first_bucket_that_holds_it(seconds: float) -> None:
    histogram = Histogram(FIRST_BYTE_BUCKETS)

    histogram.observe([seconds])

    place = histogram.counts.index(1)
    bounds = (*FIRST_BYTE_BUCKETS, float("inf"))
    assert seconds <= bounds[place]
    assert place == 0 or seconds > bounds[place - 1]
    assert (sum(histogram.counts), histogram.sum) == (1, seconds)


def test_a_bound_belongs_to_its_own_bucket() -> None:  # "le" means less than or equal
    histogram = Histogram((1.0, 2.0))
    histogram.observe([1.0, 2.0, 2.5])

    assert histogram.counts == [1, 1, 1]


@given(seconds=st.lists(st.integers(0, 4000).map(lambda eighths: eighths / 8), max_size=30))
def test_observations_count_alike_together_and_one_by_one(seconds: list[float]) -> None:
    together, one_by_one = Histogram(FIRST_BYTE_BUCKETS), Histogram(FIRST_BYTE_BUCKETS)
    together.observe(seconds)
    for value in seconds:
        one_by_one.observe([value])

    assert (together.counts, together.sum) == (one_by_one.counts, one_by_one.sum)
    assert (sum(together.counts), together.sum) == (len(seconds), sum(seconds))


@pytest.mark.parametrize("bounds", [FIRST_BYTE_BUCKETS, DURATION_BUCKETS, TOKEN_BUCKETS])
def test_bounds_ascend_and_differ_when_they_are_printed(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert len({f"{bound:g}" for bound in bounds}) == len(bounds)
    assert bounds is TOKEN_BUCKETS or bounds[-1] >= 300  # a long prompt on a CPU
