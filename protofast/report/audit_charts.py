"""Numbers with their intervals, and distributions over images, as inline SVG.

Places along the axis are percentages of the drawing's width and heights are pixels, so a drawing
is as wide as its column while dots stay round; words stand beside it as ordinary text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from protofast.report import words
from protofast.report.audit_files import Measure
from protofast.report.audit_subjects import amount, interval, with_unit
from protofast.report.charts import nice_ticks

_ROW, _TALL, _AXIS = 38, 62, 20  # heights in pixels
_BINS = 24


@dataclass(frozen=True)
class Axis:
    """What the drawings of one figure have in common.

    Attributes:
        low: Value at the left edge.
        high: Value at the right edge.
        ticks: Where numbers are written.
        unit: Of the values.
    """

    low: float
    high: float
    ticks: Sequence[float]
    unit: str

    def x(self, value: float) -> float:
        """Place of a value, in per cent of the width, kept inside the edges."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def axis_for(values: Sequence[float], unit: str) -> Axis:
    """An axis from zero (or below) over all values; percentages reach to 100."""
    low, high = min([0.0, *values]), max([0.0, *values])
    if unit == "%":
        low, high = (0.0, max(high, 100.0)) if low >= 0 else (min(low, -100.0), high)
    ticks = nice_ticks(low, high)
    return Axis(ticks[0], ticks[-1], ticks, unit)


def axis_of(measures: Sequence[Measure]) -> Axis:
    """An axis for numbers with their intervals.

    Percentages from 0 to 100 have an axis from 0 to 100, and a longer one only where an interval
    leads out of it by more than rounding: that of a share never does, that of a mean may.
    """
    values = [one.value for one in measures if one.value is not None]
    ends = [end for one in measures for end in (one.low, one.high) if end is not None]
    unit = measures[0].unit if measures else ""
    if unit != "%" or any(not 0 <= value <= 100 for value in values):
        return axis_for([*values, *ends], unit)
    outside = [end for end in ends if not -0.5 < end < 100.5]
    ticks = nice_ticks(min([0.0, *outside]), max([100.0, *outside]))
    return Axis(ticks[0], ticks[-1], ticks, unit)


def scale(axis: Axis) -> Markup:
    """The numbers under the drawings."""
    parts = []
    last = len(axis.ticks) - 1
    shown = range(0, last + 1, 1 if last < 4 else 2)  # numbers must not touch in a narrow column
    for place in shown:
        tick = axis.ticks[place]
        edge = {0: "start", last: "end"}.get(place, "middle")
        text = words.short(tick) + (f"{words.THIN}%" if axis.unit == "%" else "")
        parts.append(
            Markup('<text class="tick" x="{}%" y="13" text-anchor="{}">{}</text>').format(
                axis.x(tick), edge, text
            )
        )
    return Markup('<svg class="strip" height="{}" aria-hidden="true">{}</svg>').format(
        _AXIS, Markup("").join(parts)
    )


def strip(measure: Measure, axis: Axis, *, protocol: str = "") -> Markup:
    """One number as a dot with its interval as a line; filled if its protocol is the paper's."""
    parts = [_grid(axis, _ROW)]
    if measure.value is not None:
        if measure.low is not None and measure.high is not None:
            parts.append(
                Markup('<line class="interval" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(
                    axis.x(measure.low), axis.x(measure.high), _ROW // 2, _ROW // 2
                )
            )
        kind = "dot" if protocol in ("", "paper") else "dot open"
        parts.append(
            Markup('<circle class="{}" cx="{}%" cy="{}" r="4.5"/>').format(
                kind, axis.x(measure.value), _ROW // 2
            )
        )
    between = interval(measure)
    said = f"{measure.label}: {amount(measure)}" + (f", 95 % interval {between}" if between else "")
    return Markup('<svg class="strip" height="{}" role="img" aria-label="{}">{}</svg>').format(
        _ROW, said, Markup("").join(parts)
    )


def _grid(axis: Axis, height: int) -> Markup:
    return Markup("").join(
        Markup('<line class="grid{}" x1="{}%" x2="{}%" y1="0" y2="{}"/>').format(
            " zero" if tick == 0 else "", axis.x(tick), axis.x(tick), height
        )
        for tick in axis.ticks
    )


def histogram(label: str, values: Sequence[float], axis: Axis) -> Markup:
    """How one value per image is distributed: bars of equal width, and the median.

    Args:
        label: What the values are, for those who cannot see the drawing.
        values: Finite numbers, at least one.
        axis: Its range must cover the values.
    """
    counts = [0] * _BINS
    for value in values:
        share = (value - axis.low) / (axis.high - axis.low)
        counts[min(_BINS - 1, max(0, math.floor(share * _BINS)))] += 1
    most, width = max(counts), 100 / _BINS
    parts = [_grid(axis, _TALL)]
    for place, count in enumerate(counts):
        if count:
            height = max(1.5, (_TALL - 6) * count / most)
            parts.append(
                Markup(
                    '<rect class="column" x="{:.2f}%" width="{:.2f}%" y="{:.1f}" height="{:.1f}"/>'
                ).format(place * width, 0.88 * width, _TALL - height, height)
            )
    median = statistics.median(values)
    parts.append(
        Markup('<line class="median" x1="{}%" x2="{}%" y1="0" y2="{}"/>').format(
            axis.x(median), axis.x(median), _TALL
        )
    )
    said = (
        f"{label}: {len(values)} values from {with_unit(min(values), axis.unit)} to "
        f"{with_unit(max(values), axis.unit)}, median {with_unit(median, axis.unit)}"
    )
    return Markup('<svg class="strip tall" height="{}" role="img" aria-label="{}">{}</svg>').format(
        _TALL, said, Markup("").join(parts)
    )
