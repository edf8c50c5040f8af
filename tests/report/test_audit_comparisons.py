"""Models compared image by image, or by their intervals where they were not."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from audit_page import MINUS, content_of, number_of, page_of, plain, write


def _overlapping(content: dict[str, Any]) -> dict[str, Any]:
    """Lets the intervals of Head on Stomach overlap; the comparison of the two models."""
    for model, low, high in ((0, 40.0, 60.0), (1, 58.0, 80.0)):
        number = number_of(content, "head_on_stomach", "paper", "success_rate", model)
        number.update(value=(low + high) / 2, low=low, high=high)
    (found,) = [
        one
        for one in content["comparisons"]
        if (one["audit"], one["protocol"], one["key"])
        == ("head_on_stomach", "paper", "success_rate")
    ]
    found.update(value=19.0, low=12.0, high=26.0, n=120, differ=40)
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "standard holds better than aligned: lower on the same images, by 19.0 points (95 % "
            "interval 12.0 to 26.0, n = 120).",
        ),
        (
            {"value": -19.0, "low": -26.0, "high": -12.0},
            "aligned holds better than standard: lower on the same images, by 19.0 points (95 % "
            "interval 12.0 to 26.0, n = 120).",
        ),
        (
            {"low": 0.0, "high": 38.0},
            "No clear difference between standard and aligned: 19.0 points (95 % interval 0.0 to "
            "38.0, n = 120) on the same images.",
        ),
        (
            {"differ": 5},
            "standard and aligned differ on 5 images of the same 120: too few to tell them apart.",
        ),
        (
            {"value": 0.0, "low": 0.0, "high": 0.0, "differ": 0},
            "standard and aligned come out alike on each of the same 120 images.",
        ),
        (
            {"audit": "other"},
            "The intervals of standard and aligned overlap: so many images show no clear",
        ),
        ({"models": [0, 0]}, "it is not of two models, but of [0, 0]"),
        ({"models": [0, 2]}, "cannot be used: there is no model 2"),
        ({"value": math.nan}, "its value is nan, not a finite number"),
        ({"low": None}, "its value or interval is missing"),
    ],
)
def test_models_are_compared_image_by_image(
    audit: Path, changes: dict[str, Any], said: str
) -> None:
    content = content_of(audit)
    _overlapping(content).update(changes)
    write(audit, content)
    text = plain(page_of(audit).text)
    assert said in text
    assert text.count("aligned holds better than standard") == 3 + ("aligned holds" in said)


def test_without_comparisons_models_are_ranked_where_their_intervals_lie_apart(
    audit: Path,
) -> None:
    content = content_of(audit)
    _overlapping(content)
    del content["comparisons"]
    write(audit, content)
    text = plain(page_of(audit).text)
    assert "The intervals of standard and aligned overlap: so many images show no clear" in text
    assert text.count("aligned holds better than standard: their intervals lie apart.") == 3
    assert "less standard" not in text


@pytest.mark.parametrize("compared", [True, False])
def test_that_a_pair_was_picked_from_several_is_said(audit: Path, compared: bool) -> None:
    content = content_of(audit)
    picked = "They were picked as best and worst of three models"
    assert picked not in plain(page_of(audit).text)
    content["models"].append({**content["models"][0], "name": "between"})
    for one in [each for each in content["audits"] if each["model"] == 0]:
        if (one["audit"], one["protocol"]) == ("head_on_stomach", "paper"):
            between = {**one["numbers"][0], "value": 50.0, "low": 40.0, "high": 60.0}
            content["audits"].append({**one, "model": 2, "numbers": [between], "pictures": []})
    if not compared:
        del content["comparisons"]
    write(audit, content)
    text = plain(page_of(audit).text)
    assert text.count(picked) == 1, "the other audits have two models"
    assert re.search(rf"aligned holds better than standard: [^:]*\. {picked}, which", text)


def test_differences_are_listed_number_by_number(audited: Path) -> None:
    text = plain(page_of(audited).text)
    for one in content_of(audited)["comparisons"]:
        digits = 1 if one["unit"] else 2
        value, low, high = (
            f"{one[key]:.{digits}f}".replace("-", MINUS) for key in ("value", "low", "high")
        )
        sign = "+" if one["value"] > 0 else ""
        said = f"aligned less standard {one['protocol']} [^<]*?{re.escape(sign + value)}[^<]*?"
        assert re.search(rf"{said}{low} to {high}", text), one
