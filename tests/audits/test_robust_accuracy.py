"""Clean and PGD-10 adversarial accuracy: what is counted, under which protocol, of which images."""

import pytest
import torch
from PIL import Image
from torch import nn

from protofast.audits.audit import Subject
from protofast.audits.robust_accuracy import RobustAccuracy, RobustAccuracySettings
from protofast.data import ImageSet, MemoryImageSet
from protofast.models import ProtoPNet


def brightness_model(edge=0.5, sharpness=10.0):
    """Class 1 where the mean of the image is above `edge`, else class 0."""
    model = ProtoPNet(
        nn.AdaptiveAvgPool2d(1),
        num_classes=2,
        prototypes_per_class=1,
        depth=1,
        num_channels=1,
        mean=[0.0],
        std=[1.0],
        input_size=(4, 4),
        similarity="linear",
    )
    model.add_on = nn.Identity()
    with torch.no_grad():  # distances to edge-1/2 and edge+1/2: which is nearer?
        model.prototypes.copy_(torch.tensor([[edge - 0.5], [edge + 0.5]]))
        model.last_layer.weight.copy_(torch.eye(2) * sharpness)
    return model.eval().requires_grad_(False)


def subject_of(levels, labels, *, model=None, **options):
    """Flat grey images (levels in 0 ... 255) of 4 x 4 pixels."""
    pixels = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    images = MemoryImageSet(
        pixels,
        source=ImageSet(
            classes=["dark", "light"],
            labels=labels,
            names=[f"grey-{level}" for level in levels],
            channels=1,
            size=(4, 4),
        ),
    )
    model = model or brightness_model()
    with torch.no_grad():
        guessed = model(pixels / 255).logits.argmax(dim=1)
    return Subject(
        name="brightness",
        model=model,
        images=images,
        predictions=guessed,
        correct_in_all=guessed == images.labels,
        **options,
    )


def run(audit, subject):
    return [row for unit in audit.units(subject) for row in audit.measure(subject, unit)]


def test_images_within_reach_of_the_border_fall_and_the_others_hold():
    # The border is at 127.5; the attack moves a flat image by 8 at most.
    levels = [0, 100, 119, 121, 127, 128, 134, 136, 255]
    labels = [0, 0, 0, 0, 0, 1, 1, 1, 1]
    subject = subject_of(levels, labels, batch_size=4)
    audit = RobustAccuracy(RobustAccuracySettings())
    rows = sorted(run(audit, subject), key=lambda row: row["image"])
    assert [row["image"] for row in rows] == list(range(9))
    assert all(row["right"] for row in rows)
    held = [row["right_under_attack"] for row in rows]
    assert held == [True, True, True, False, False, False, False, True, True]
    assert [row["class_under_attack"] for row in rows][3:5] == ["light", "light"]
    assert rows[0]["steps"] == 10
    assert rows[4]["steps"] <= 1
    clean, adversarial = audit.summarise(subject, rows)
    assert (clean.key, clean.value, clean.n) == ("clean_accuracy", 100, 9)
    assert adversarial.key == "adversarial_accuracy"
    assert adversarial.value == pytest.approx(500 / 9)
    assert adversarial.low < adversarial.value < adversarial.high


def test_the_protocols_differ_where_noise_sets_an_image_right():
    """Dark by label and too light by a hair: many random starts are on the right side."""
    levels, labels = [128] * 200, [0] * 200
    subject = subject_of(levels, labels)
    paper = RobustAccuracy(RobustAccuracySettings(steps=0))
    released = RobustAccuracy(RobustAccuracy.protocols["released"].model_copy(update={"steps": 0}))
    counted = {
        audit.settings.protocol: [number.value for number in audit.summarise(subject, rows)]
        for audit in (paper, released)
        for rows in [run(audit, subject)]
    }
    assert counted["paper"] == [0, 0]
    assert counted["released"][0] == 0
    assert 20 < counted["released"][1] < 60


def test_the_defaults_are_those_of_the_papers_table():
    for settings in RobustAccuracy.protocols.values():
        assert (settings.epsilon, settings.step_size, settings.steps) == (8 / 255, 2 / 255, 10)
    assert list(RobustAccuracy.protocols) == ["paper", "released"]


def test_a_subset_is_seeded_and_units_do_not_depend_on_the_batch_size():
    levels = list(range(200))
    audit = RobustAccuracy(RobustAccuracySettings(images=70))
    units = audit.units(subject_of(levels, [0] * 200, batch_size=7))
    assert [len(unit) for unit in units] == [16, 16, 16, 16, 6]
    assert len({position for unit in units for position in unit}) == 70
    assert units == audit.units(subject_of(levels, [0] * 200, batch_size=64))
    assert units != audit.units(subject_of(levels, [0] * 200, seed=1))


def test_rows_do_not_depend_on_the_batch_size():
    levels, labels = list(range(110, 145)), [0] * 18 + [1] * 17
    audit = RobustAccuracy(RobustAccuracySettings())
    whole, parts = (run(audit, subject_of(levels, labels, batch_size=size)) for size in (64, 3))
    assert whole == parts


def test_logits_that_are_not_finite_are_wrong():
    class Broken(nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3), keepdim=True) * torch.nan

    model = brightness_model()
    subject = subject_of([10, 20], [0, 0], model=model)
    model.backbone = Broken()
    rows = run(RobustAccuracy(RobustAccuracySettings()), subject)
    assert [row["right_under_attack"] for row in rows] == [False, False]
    assert [row["class_under_attack"] for row in rows] == ["", ""]


def test_pictures_show_the_quickest_first_in_two_versions_of_equal_size(tmp_path):
    subject = subject_of([0, 121, 127], [0, 0, 0])
    audit = RobustAccuracy(RobustAccuracySettings())
    pictures = audit.pictures(subject, run(audit, subject), tmp_path / "pictures")
    assert [picture.files["clean"] for picture in pictures] == ["2-clean.png", "1-clean.png"]
    assert [picture.image for picture in pictures] == ["grey-127", "grey-121"]
    for picture in pictures:
        sizes = set()
        for name in picture.files.values():
            with Image.open(tmp_path / "pictures" / name) as shown:
                sizes.add(shown.size)
        assert len(sizes) == 1
        assert "told to be light" in picture.caption
        assert "8/255" in picture.caption


def test_pictures_are_told_as_the_attack_that_is_shown(tmp_path):
    """Rows say that image 0 fell, and image 1 after 9 steps; of neither is that so any more."""
    subject = subject_of([0, 127], [0, 0])
    audit = RobustAccuracy(RobustAccuracySettings())
    rows = [
        row | {"right_under_attack": False, "class_under_attack": "light", "steps": 9}
        for row in run(audit, subject)
    ]
    (picture,) = audit.pictures(subject, rows, tmp_path)
    assert picture.image == "grey-127"
    assert "found in 9 steps" not in picture.caption
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1-attacked.png", "1-clean.png"]


def test_nothing_fell_so_there_is_nothing_to_show(tmp_path):
    subject = subject_of([0, 255], [0, 1])
    audit = RobustAccuracy(RobustAccuracySettings())
    assert audit.pictures(subject, run(audit, subject), tmp_path / "pictures") == []
