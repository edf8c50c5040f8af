"""Numbers in drawings and in words."""

import re
from pathlib import Path

import pytest
from audit_page import MINUS

from protofast.report.audit_charts import axis_for, axis_of, histogram
from protofast.report.audit_files import Measure, read_audit
from protofast.report.audit_subjects import how_often, interval, radius


def _measure(value: float | None, low: float | None, high: float | None, unit: str) -> Measure:
    return Measure("key", "label", value, unit, None, 3, low, high)


def test_an_axis_holds_all_its_values() -> None:
    share = axis_of([_measure(0.5, -0.4, 1.4, "%"), _measure(99.0, 97.0, 100.4, "%")])
    assert (share.low, share.high) == (0, 100)
    assert share.x(-0.4) == 0
    mean = axis_of([_measure(5.0, -12.0, 22.0, "%"), _measure(40.0, 30.0, 50.0, "%")])
    assert -100 < mean.low <= -12
    assert 0 < mean.x(-12.0) < mean.x(0.0) < mean.x(22.0) < 100
    assert 0.0 in mean.ticks
    above = axis_of([_measure(80.0, 50.0, 120.0, "%")])
    assert (above.low, above.x(120.0) <= 100, above.high >= 120) == (0, True, True)
    fall = axis_for([-3.0, -60.0], "%")
    assert (fall.low, fall.high) == (-100, 0)
    both = axis_of([_measure(-1.0, -2.5, 0.5, ""), _measure(3.0, None, None, "")])
    assert both.low <= -2.5
    assert both.high >= 3
    assert all(0 <= both.x(tick) <= 100 for tick in both.ticks)
    empty = axis_of([])
    assert empty.low < empty.high
    zero = axis_for([0.0, 0.0], "")
    assert zero.low < zero.high


def test_a_histogram_counts_every_value() -> None:
    axis = axis_for([0.0, 100.0], "%")
    html = str(histogram("<b>", [0.0, 0.0, 100.0], axis))
    heights = [float(h) for h in re.findall(r'class="column"[^>]*height="([\d.]+)"', html)]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
    assert "&lt;b&gt;: 3 values" in html


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "no image"),
        (0.1, "few images"),
        (5.0, "some images"),
        (25.0, "many images"),
        (50.0, "most images"),
        (90.0, "nearly all images"),
        (99.9, "nearly all images"),
        (100.0, "every image"),
    ],
)
def test_a_share_in_words(share: float, said: str) -> None:
    assert how_often(share) == said


def test_intervals_and_radii_in_words(audit: Path) -> None:
    assert interval(_measure(1.0, None, 2.0, "%")) == ""
    assert interval(_measure(-1.0, -2.0, 0.04, "%")) == f"{MINUS}2.0 to 0.0"
    result = read_audit(audit).results[0]
    for epsilon, said in ((8 / 255, "8/255"), (0.012, "3.1/255"), (0.0, ""), ("8", ""), (7, "")):
        result.settings["epsilon"] = epsilon
        assert radius(result) == said
