"""Numbers and their intervals, against published and closed forms."""

import math

import numpy as np
import pytest

from protofast.audits.statistics import mean_number, share_number


@pytest.mark.parametrize(
    ("hits", "low", "high"), [(0, 0, 27.75), (5, 23.66, 76.34), (10, 72.25, 100)]
)
def test_a_share_has_wilsons_interval(hits, low, high):
    number = share_number("key", "label", [True] * hits + [False] * (10 - hits), better="lower")
    assert (number.value, number.n, number.unit) == (10 * hits, 10, "%")
    assert number.low == pytest.approx(low, abs=0.005)
    assert number.high == pytest.approx(high, abs=0.005)


def test_the_bootstrap_of_a_mean_is_close_to_the_normal_interval_and_repeats():
    values = np.random.default_rng(3).normal(5, 2, 1000).tolist()
    number = mean_number("key", "label", values, unit="points", better="higher")
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(1000)
    assert number.value == pytest.approx(np.mean(values), rel=1e-12)
    assert number.value - number.low == pytest.approx(half, rel=0.1)
    assert number.high - number.value == pytest.approx(half, rel=0.1)
    assert (number.n, number.unit, number.better) == (1000, "points", "higher")
    assert mean_number("key", "label", values, unit="points", better="higher") == number


@pytest.mark.parametrize("values", [[7.0], [7.0] * 5])
def test_without_any_spread_both_ends_are_the_mean(values):
    number = mean_number("key", "label", values)
    assert (number.value, number.low, number.high, number.n) == (7, 7, 7, len(values))


def test_nothing_gives_no_number():
    for number in (mean_number("key", "label", []), share_number("key", "label", [])):
        assert (number.value, number.low, number.high, number.n) == (None, None, None, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="key: values must be finite"):
        mean_number("key", "label", [1.0, value])
