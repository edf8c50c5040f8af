"""Numbers and their intervals, against published and closed forms."""

import math

import numpy as np
import pytest

from protofast.audits.statistics import mean_number, paired_shares, share_number


@pytest.mark.parametrize(
    ("hits", "low", "high"), [(0, 0, 27.75), (5, 23.66, 76.34), (10, 72.25, 100)]
)
def test_a_share_has_wilsons_interval(hits, low, high):
    number = share_number("key", "label", [True] * hits + [False] * (10 - hits), better="lower")
    assert (number.value, number.n, number.unit) == (10 * hits, 10, "%")
    assert number.low == pytest.approx(low, abs=0.005)
    assert number.high == pytest.approx(high, abs=0.005)


def test_paired_shares_have_newcombes_interval():
    """Newcombe 1998, table III: 36 both, 12 the one alone, 2 the other alone, of 50."""
    one = [True] * 36 + [False] * 2 + [True] * 12
    other = [True] * 36 + [True] * 2 + [False] * 12
    number = paired_shares("key", "label", other, one, better="higher")
    assert (number.value, number.n, number.unit, number.better) == (20, 50, "points", "higher")
    assert number.low == pytest.approx(5.69, abs=0.005)
    assert number.high == pytest.approx(34.04, abs=0.005)
    turned = paired_shares("key", "label", one, other)
    assert (turned.value, turned.low, turned.high) == (-20, -number.high, -number.low)


@pytest.mark.parametrize("hit", [False, True])
def test_shares_that_are_alike_on_every_image_still_have_a_width(hit):
    number = paired_shares("key", "label", [hit] * 40, [hit] * 40)
    assert number.value == 0
    assert number.low == pytest.approx(-number.high)
    assert 5 < number.high < 15
    (one,) = [paired_shares("key", "label", [hit], [not hit])]
    assert -100 <= one.low <= one.value <= one.high <= 100


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
