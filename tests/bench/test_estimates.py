from __future__ import annotations

import random
import statistics

import pytest

from llama_gguf_bench.estimates import (
    Estimate,
    batches,
    bootstrap,
    difference,
    mean_estimate,
    pooled,
    quantile,
    quantile_estimates,
    share_estimate,
    t_quantile,
    widened,
)


def median_of(items: list[list[float]]) -> Estimate:
    found = quantile_estimates(items, (0.5,))
    assert found is not None
    return found[0]


@pytest.mark.parametrize(("share", "expected"), [(0, 1.0), (0.5, 2.5), (0.9, 3.7), (1, 4.0)])
def test_a_quantile_lies_between_the_values_beside_it(share: float, expected: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == pytest.approx(expected)


def test_one_value_is_every_quantile() -> None:
    assert quantile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("freedom", "expected"), [(4, 4.6041), (9, 3.2498), (19, 2.8609), (100, 2.6259)]
)
def test_the_t_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.003)


def test_batches_are_consecutive_and_lose_nothing() -> None:
    items = [[float(i)] for i in range(47)]

    found = batches(items, 20)

    assert len(found) == 20
    assert [v for part in found for v in part] == [float(i) for i in range(47)]
    assert batches([]) == []


def test_the_median_of_many_values_has_narrow_bounds_around_the_true_median() -> None:
    rng = random.Random(1)
    found = median_of([[rng.gauss(10, 1)] for _ in range(2000)])

    assert found.low is not None
    assert found.high is not None
    assert found.low < 10 < found.high
    assert found.high - found.low < 0.3


def test_the_bounds_hold_nearly_always() -> None:
    """The bounds hold in 99 % of cases; three misses are expected in 300 trials."""
    rng = random.Random(2)
    missed = 0
    for _ in range(300):
        found = median_of([[rng.expovariate(1)] for _ in range(200)])
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 0.6931 <= found.high

    assert missed <= 9


def test_correlated_values_within_a_request_count_little() -> None:
    """A thousand gaps of ten requests carry the information of ten values."""
    rng = random.Random(3)
    paces = [rng.uniform(1, 2) for _ in range(20)]
    within = median_of([[pace] * 100 for pace in paces])
    mixed = [rng.choice(paces) for _ in range(2000)]
    apart = median_of([mixed[i : i + 100] for i in range(0, 2000, 100)])

    assert within.high is None or apart.high is None or within.high > apart.high


def test_few_requests_give_no_bounds_for_a_high_quantile() -> None:
    found = quantile_estimates([[float(i)] for i in range(50)], (0.5, 0.99))

    assert found is not None
    assert found[0].high is not None
    assert found[1].high is None


def test_too_few_values_have_no_bounds() -> None:
    assert median_of([[1.0], [2.0], [3.0]]) == Estimate(2.0)
    assert mean_estimate([1.0, 2.0, 3.0]) == Estimate(2.0)
    assert quantile_estimates([[], []], (0.5,)) is None
    assert mean_estimate([]) is None


def test_correlated_neighbours_widen_the_bounds_of_a_mean() -> None:
    wave = mean_estimate([1.0] * 10 + [2.0] * 10)
    mixed = mean_estimate([1.0, 2.0] * 10)

    assert wave is not None
    assert mixed is not None
    assert wave.value == mixed.value == 1.5
    assert wave.high is not None
    assert mixed.high is not None
    assert wave.high > mixed.high + 0.5


def test_a_steady_mean_has_no_noise() -> None:
    assert mean_estimate([3.0] * 20) == Estimate(3.0, 3.0, 3.0)


def test_no_observed_failure_does_not_exclude_failures() -> None:
    few, many = share_estimate([False] * 20), share_estimate([False] * 2000)

    assert few is not None
    assert many is not None
    assert (few.value, few.low, many.low) == (0.0, 0.0, 0.0)
    assert few.high == pytest.approx(0.206, abs=0.01)
    assert many.high == pytest.approx(0.0023, abs=0.0002)


def test_a_share_stays_between_none_and_all() -> None:
    found = share_estimate([True] * 2 + [False] * 18)

    assert found is not None
    assert found.low == 0.0
    assert share_estimate([]) is None
    assert share_estimate([True, False]) == Estimate(0.5)


def test_a_difference_is_as_uncertain_as_both_together() -> None:
    assert difference(Estimate(10, 7, 13), Estimate(20, 16, 24)) == Estimate(10, 5, 15)


def test_a_difference_keeps_lopsided_bounds() -> None:
    found = difference(Estimate(10, 10, 10), Estimate(12, 11, 20))

    assert found == Estimate(2, 1, 10)


def test_without_bounds_on_either_side_a_difference_has_none() -> None:
    assert difference(Estimate(1), Estimate(3, 2, 4)) == Estimate(2)
    assert difference(Estimate(3, 2, 4), Estimate(1, None, 2)) == Estimate(-2)


def test_the_bootstrap_finds_the_noise_of_a_mean() -> None:
    rng = random.Random(4)
    values = [rng.gauss(5, 1) for _ in range(100)]

    found = bootstrap(values, statistics.fmean, random.Random(5))

    assert found.low is not None
    assert found.high is not None
    assert found.low < 5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / 10, rel=0.25)


def test_the_bootstrap_of_few_values_has_no_bounds() -> None:
    assert bootstrap([1.0, 2.0], statistics.fmean, random.Random(6)) == Estimate(1.5)


def test_an_estimate_reads_back() -> None:
    for made in (Estimate(1.5, 1.0, None), Estimate(1.0)):
        assert Estimate.from_json(made.as_json()) == made


def test_pooled_estimates_are_more_exact_than_each() -> None:
    found = pooled([Estimate(1.0, 0.7, 1.3), Estimate(3.0, 2.6, 3.4)])

    assert found.value == 2.0
    assert found.low == pytest.approx(1.75)
    assert found.high == pytest.approx(2.25)


def test_pooled_with_an_estimate_without_bounds_there_are_none() -> None:
    assert pooled([Estimate(1.0, 0.7, 1.3), Estimate(3.0)]) == Estimate(2.0)


def test_bounds_for_many_estimates_together_are_wider() -> None:
    one = Estimate(1.0, 0.0, 3.0)

    assert widened(one, 1) == one
    assert widened(Estimate(1.0), 100) == Estimate(1.0)
    many = widened(one, 100)
    # Normal quantiles of 1 - 0.00005 and 1 - 0.005: 3.8906 and 2.5758.
    assert many.low == pytest.approx(1 - 3.8906 / 2.5758, abs=1e-3)
    assert many.high == pytest.approx(1 + 2 * 3.8906 / 2.5758, abs=1e-3)
