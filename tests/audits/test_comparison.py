"""Two models on the same images: by how much numbers differ, and where nothing can be said."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from dimming import Dimming, DimmingSettings, small_birds, small_model

from protofast.audits import AuditedModel, run_audits
from protofast.audits.audit import Row
from protofast.audits.comparison import Measured, comparisons
from protofast.audits.statistics import mean_number


def measured(model: int, values: dict[int, float], **changes: object) -> Measured:
    entry = {
        "model": model,
        "audit": "attack",
        "protocol": "paper",
        "settings": {"steps": 10},
        "numbers": [
            {"key": "success", "label": "succeeds", "unit": "%", "better": "lower"},
            {"key": "unpaired", "label": "of others", "unit": "", "better": None},
        ],
    }
    return Measured({**entry, **changes}, {"success": values})


def test_the_images_that_both_have_are_compared_one_by_one() -> None:
    one = measured(0, {0: 100.0, 1: 100.0, 2: 0.0, 3: 100.0, 9: 100.0})
    other = measured(1, {3: 0.0, 2: 0.0, 1: 100.0, 0: 0.0, 8: 100.0})
    (found,) = comparisons([one, other])
    assert found["models"] == [0, 1]
    assert (found["audit"], found["protocol"], found["key"]) == ("attack", "paper", "success")
    assert (found["value"], found["n"], found["differ"]) == (-50.0, 4, 2)
    assert (found["unit"], found["better"], found["label"]) == ("points", "lower", "succeeds")
    assert -100 < found["low"] < -50 < found["high"] < 50, "four images say little"
    assert comparisons([one, other]) == [found], "the same bits again"


def test_what_both_have_in_common_takes_nothing_from_a_difference() -> None:
    """Images that differ much among each other, and hardly between the models."""
    chance = np.random.default_rng(0)
    hard = chance.normal(50, 20, 400)
    gain = chance.normal(2, 3, 400)
    pair = [dict(enumerate(hard.tolist())), dict(enumerate((hard - gain).tolist()))]
    (found,) = comparisons([measured(place, values) for place, values in enumerate(pair)])
    half = 1.96 * gain.std(ddof=1) / 20
    assert found["value"] == pytest.approx(-gain.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)
    assert found["high"] < 0
    one, other = (mean_number("key", "label", list(values.values())) for values in pair)
    assert one.low is not None
    assert other.high is not None
    assert one.low < other.high, "though the intervals of the numbers overlap"


@pytest.mark.parametrize(
    "changes", [{"settings": {"steps": 9}}, {"protocol": "released"}, {"audit": "other"}]
)
def test_what_was_not_measured_alike_is_not_compared(changes: dict[str, object]) -> None:
    assert comparisons([measured(0, {0: 1.0}), measured(1, {0: 2.0}, **changes)]) == []


def test_without_an_image_in_common_nothing_is_said() -> None:
    assert comparisons([measured(0, {0: 1.0}), measured(1, {1: 2.0})]) == []
    assert comparisons([measured(0, {}), measured(1, {0: 1.0})]) == []
    assert comparisons([measured(0, {0: 1.0})]) == []
    assert comparisons([]) == []


def test_models_that_are_alike_differ_on_no_image() -> None:
    values = {0: 3.0, 1: 4.0}
    (found,) = comparisons([measured(0, values), measured(1, values)])
    assert (found["value"], found["low"], found["high"], found["differ"]) == (0, 0, 0, 0)
    always = dict.fromkeys(range(4), 100.0)  # a share: alike on four images is not alike on all
    (found,) = comparisons([measured(0, always), measured(1, always)])
    assert (found["value"], found["differ"]) == (0, 0)
    assert found["low"] < -40
    assert found["high"] > 40


def test_each_two_of_several_models_are_compared() -> None:
    three = [measured(place, {0: float(place), 1: 2.0 * place}) for place in range(3)]
    found = comparisons(three)
    assert [each["models"] for each in found] == [[0, 1], [0, 2], [1, 2]]
    assert [each["value"] for each in found] == [1.5, 3.0, 1.5]


class Compared(Dimming):
    """Says what its mean is the mean of."""

    def values(self, rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
        return {"kept": {row["image"]: row["kept"] for row in rows if "kept" in row}}


def test_an_audit_of_two_models_has_their_differences(tmp_path: Path) -> None:
    models = [AuditedModel(name=name, model=small_model(seed)) for seed, name in enumerate("ab")]
    images = small_birds(tmp_path / "birds")
    audits = [Compared(DimmingSettings()), Compared(DimmingSettings(protocol="released"))]
    told: list[str] = []
    said = run_audits(
        models, images, audits, tmp_path / "audit", progress=lambda what, *_: told.append(what)
    ).summary
    assert told[-3:] == ["comparing a and b", "comparing a and b", "summary"]
    assert [(each["protocol"], each["key"]) for each in said["comparisons"]] == [
        ("paper", "kept"),
        ("released", "kept"),
    ]
    for found in said["comparisons"]:
        one, other = (
            next(number for number in entry["numbers"] if number["key"] == "kept")
            for entry in said["audits"]
            if entry["protocol"] == found["protocol"]
        )
        assert found["value"] == pytest.approx(other["value"] - one["value"])
        assert found["n"] == one["n"] == found["differ"]
    alone = run_audits(models[:1], images, audits, tmp_path / "alone").summary
    assert alone["comparisons"] == []
