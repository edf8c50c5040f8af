"""A number with its interval: means and shares over images, by the bootstrap."""

from __future__ import annotations

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
