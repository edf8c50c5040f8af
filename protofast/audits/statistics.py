"""A number with its interval: means and shares over images, by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from protofast.audits.audit import Number, Row

_RESAMPLES = 2000
_CONFIDENCE = 0.95


def mean_number(
    key: str,
    label: str,
    values: Sequence[float],
    *,
    unit: Literal["%", "points", ""] = "",
    better: Literal["lower", "higher"] | None = None,
) -> Number:
    """The mean of one value per image with its 95 % percentile-bootstrap interval.

    Images are drawn with replacement 2000 times from a fixed seed, so the same values always give
    the same interval. One value alone, or values that are all alike, have no width to show: then
    both ends are the mean.

    Args:
        key: See `Number`.
        label: See `Number`.
        values: One per image, finite; none gives a number without a value.
        unit: See `Number`.
        better: See `Number`.
    """
    if len(values) == 0:
        return Number(key=key, label=label, value=None, unit=unit, better=better)
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError(f"{key}: values must be finite; count those that are not apart")
    mean = float(data.mean())
    low = high = mean
    if (data != data[0]).any():
        interval = stats.bootstrap(
            (data,),
            np.mean,
            n_resamples=_RESAMPLES,
            confidence_level=_CONFIDENCE,
            method="percentile",
            batch=max(1, (1 << 22) // len(data)),
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Number(
        key=key, label=label, value=mean, unit=unit, better=better, n=len(data), low=low, high=high
    )


def column_mean(
    key: str,
    label: str,
    rows: Sequence[Row],
    *,
    unit: Literal["%", "points", ""] = "",
    better: Literal["lower", "higher"] | None = None,
) -> Number:
    """The mean of a column over the rows that have it; see `mean_number`."""
    values = [row[key] for row in rows if row[key] is not None]
    return mean_number(key, label, values, unit=unit, better=better)


def remark_shares(rows: Sequence[Row], remarks: Mapping[str, str]) -> Iterator[Number]:
    """The share of rows with each remark that occurs at all.

    Args:
        rows: Their `remarks` are keys between spaces.
        remarks: What to call each key.
    """
    for key, label in remarks.items():
        holds = [key in row["remarks"].split() for row in rows]
        if any(holds):
            yield share_number(key, label, holds)


def share_number(
    key: str,
    label: str,
    hits: Sequence[bool],
    *,
    better: Literal["lower", "higher"] | None = None,
) -> Number:
    """The share of images, in per cent, for which something holds, with its Wilson interval.

    (The bootstrap of a share near 0 or 100 % has no width; Wilson's 95 % interval does.)
    """
    if len(hits) == 0:
        return Number(key=key, label=label, value=None, unit="%", better=better)
    count = sum(bool(hit) for hit in hits)
    interval = stats.binomtest(count, len(hits)).proportion_ci(_CONFIDENCE, method="wilson")
    return Number(
        key=key,
        label=label,
        value=100 * count / len(hits),
        unit="%",
        better=better,
        n=len(hits),
        low=100 * float(interval.low),
        high=100 * float(interval.high),
    )


def paired_shares(
    key: str,
    label: str,
    first: Sequence[bool],
    second: Sequence[bool],
    *,
    better: Literal["lower", "higher"] | None = None,
) -> Number:
    """By how many points the second share is above the first, both of the same images.

    With Newcombe's 95 % interval for paired proportions (1998, Statistics in Medicine 17:2635,
    method 10), made of the two Wilson intervals; like these it has a width even where the shares
    are alike on every image.

    Args:
        key: See `Number`.
        label: See `Number`.
        first: For each image, whether it holds of the first model; at least one.
        second: The same of the second, in the same order.
        better: See `Number`.
    """
    one, other = (share_number(key, label, hits, better=better) for hits in (first, second))
    pairs = list(zip(first, second, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    sums = (both + only_first, only_second + neither, both + only_second, only_first + neither)
    correlation = (both * neither - only_first * only_second) / max(math.sqrt(math.prod(sums)), 1)

    def reach(of_one: float, of_other: float) -> float:
        square = of_one**2 - 2 * correlation * of_one * of_other + of_other**2
        return math.sqrt(max(square, 0.0))

    def ends(number: Number) -> tuple[float, float]:
        """How far the interval reaches below the share and above it."""
        assert number.value is not None
        assert number.low is not None
        assert number.high is not None
        return number.value - number.low, number.high - number.value

    (below_one, above_one), (below_other, above_other) = ends(one), ends(other)
    difference = 100 * (only_second - only_first) / len(pairs)
    return Number(
        key=key,
        label=label,
        value=difference,
        unit="points",
        better=better,
        n=len(pairs),
        low=difference - reach(below_other, above_one),
        high=difference + reach(above_other, below_one),
    )
