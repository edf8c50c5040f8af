"""The spatial-misalignment benchmark on networks of which it is known where they look."""

import dataclasses
from pathlib import Path

import pytest
import torch
from misaligned_models import (
    BLUE,
    BRIGHT,
    GREEN,
    RED,
    Shifted,
    both_protocols,
    cells,
    network,
    numbers_of,
    of_twelve_colours,
    one_bright_cell,
    patchwork,
    rows_of,
    subject,
)
from PIL import Image
from pydantic import ValidationError
from torch import nn

from protofast.alignment import alignment_step
from protofast.audits.misalignment_attack import (
    PAPER,
    RELEASED,
    MisalignmentSettings,
    examine,
)
from protofast.audits.spatial_misalignment import SpatialMisalignment


@both_protocols
def test_a_network_that_sees_one_cell_keeps_its_similarity(settings):
    """The winning cell is protected, so nothing that the winner sees changes."""
    model = network(cells(), torch.stack((RED, GREEN, BLUE, RED - GREEN)), [0, 1, 2, 0])
    pixels = one_bright_cell([0, 1, 2, 3], [3, 0, 2, 1], BRIGHT)
    examined = subject(model, pixels, [0] * 4)
    rows = rows_of(settings, examined)
    for row, cell in zip(rows, ((0, 3), (1, 0), (2, 2), (3, 1)), strict=True):
        top, left = cell[0] * 8, cell[1] * 8
        if settings.protect_border:  # else the last pixel of the last cells is open, as released
            assert row["x0"] <= left
            assert row["x1"] >= left + 8
            assert row["y0"] <= top
            assert row["y1"] >= top + 8
        elif cell[0] == 3 or cell[1] == 3:
            continue
        assert row["prototype"] == 3
        assert row["activation_change"] == 0.0
        assert row["activation_after"] == row["activation_before"] > 1


@both_protocols
@pytest.mark.parametrize("prototypes", ["top_proto", "gt_protos"])
def test_everything_is_exactly_zero_where_all_else_is_fill(settings, prototypes):
    """No bias, one cell that is not fill; what the radius allows is too small to be seen."""
    settings = settings.model_copy(update={"prototypes": prototypes})
    model = network(cells(nn.Hardshrink(0.5)), torch.stack((RED, GREEN, BLUE)), [0, 1, 2])
    pixels = one_bright_cell([1, 0, 2], [2, 0, 1], BRIGHT)
    examined = subject(model, pixels, [0, 0, 0])
    assert len(rows_of(settings, examined)) == 3
    for row in rows_of(settings, examined):
        assert row["location_change"] == row["activation_change"] == row["rank_change"] == 0
        assert 0 < row["protected"] < 100
    images, own = examined.load([0, 1, 2]), torch.tensor([[True, False, False]] * 3)
    seen = examine(model, images, own, settings, image_ids=torch.arange(3))
    assert (seen.changed != images).float().mean() > 0.2
    step = alignment_step(model, examined.load([0, 1, 2]), torch.zeros(3, 1, dtype=torch.int64))
    assert step.masks.any()
    assert float(step.loss) == 0.0


def test_a_network_that_looks_elsewhere_is_caught():
    """Its maps mark one cell, and what it sees lies two rows and columns further."""
    honest, elsewhere = of_twelve_colours(cells()), of_twelve_colours(cells(Shifted()))
    pixels = patchwork(24)
    labels = subject(elsewhere, pixels, [0] * 24).predictions.tolist()  # all right, as it is
    paper, released = (
        settings.model_copy(update={"margin": 2}) for settings in (PAPER, RELEASED)
    )  # of 32 pixels, about what 10 are of 224
    good, bad = (
        {key: number.value for key, number in numbers_of(paper, examined).items()}
        for examined in (subject(model, pixels, labels) for model in (honest, elsewhere))
    )
    assert bad["activation_change"] > 30 > 5 > good["activation_change"]
    assert bad["location_change"] > 30 > 15 > good["location_change"]
    assert bad["rank_change"] > 2 > 0.5 > good["rank_change"]
    assert bad["accuracy_before"] == 100 > bad["accuracy_after"] + 20
    assert bad["accuracy_change"] == bad["accuracy_before"] - bad["accuracy_after"]
    noise = numbers_of(released, subject(elsewhere, pixels, labels))
    assert noise["activation_change"].value < 0.2 * bad["activation_change"]
    losses = []
    for model in (honest, elsewhere):
        top = model(pixels / 255).activations.argmax(dim=1, keepdim=True)
        losses.append(float(alignment_step(model, pixels / 255, top, weigh_by_mask=True).loss))
    assert losses[1] > 4 * losses[0]


@both_protocols
@pytest.mark.parametrize("prototypes", ["top_proto", "gt_protos"])
def test_a_batch_of_64_equals_64_batches_of_one(settings, prototypes):
    """With equal features (here averages of cells, in float64) to the last bit."""
    settings = settings.model_copy(update={"prototypes": prototypes, "steps": 12})
    model = of_twelve_colours(cells(Shifted())).double()
    labels = [n % 4 for n in range(64)]
    rows = [
        rows_of(settings, subject(model, patchwork(64), labels, batch_size=size))
        for size in (64, 1)
    ]
    assert rows[0] == rows[1]


def test_units_are_fixed_and_a_subset_is_drawn_by_the_seed():
    model = network(cells(), torch.eye(3), [0, 1, 2])
    many = subject(model, patchwork(150), [n % 3 for n in range(150)], batch_size=7)
    units = SpatialMisalignment(PAPER).units(many)
    assert [len(unit) for unit in units] == [16] * 9 + [6]
    assert [position for unit in units for position in unit] == list(range(150))
    some = SpatialMisalignment(PAPER.model_copy(update={"images": 70}))
    units = some.units(many)
    assert [len(unit) for unit in units] == [16] * 4 + [6]
    drawn = [position for unit in units for position in unit]
    assert drawn == sorted(set(drawn))
    assert some.units(many) == units
    assert some.units(dataclasses.replace(many, seed=1)) != units


def test_what_an_image_costs():
    assert SpatialMisalignment(PAPER).effort == 121
    assert SpatialMisalignment(RELEASED).effort == 2  # noise takes no steps


def test_settings_are_frozen_and_refuse_what_they_do_not_know():
    assert list(SpatialMisalignment.protocols) == ["paper", "released"]
    for name, settings in SpatialMisalignment.protocols.items():
        assert settings.protocol == name
        assert MisalignmentSettings(**settings.model_dump()) == settings
    with pytest.raises(ValidationError, match="frozen"):
        PAPER.steps = 3
    with pytest.raises(ValidationError, match="epsylon"):
        MisalignmentSettings(epsylon=0.1)
    with pytest.raises(ValidationError, match="top_proto"):
        MisalignmentSettings(prototypes="best")
    with pytest.raises(ValidationError, match="epsilon"):
        MisalignmentSettings(epsilon=-0.1)


def test_pictures_show_the_worst_first_in_two_versions_of_one_size(tmp_path: Path):
    model = of_twelve_colours(cells(Shifted()))
    examined = subject(model, patchwork(20), [n % 4 for n in range(20)], batch_size=5)
    settings = PAPER.model_copy(update={"steps": 10, "margin": 2})
    audit = SpatialMisalignment(settings)
    rows = rows_of(settings, examined)
    pictures = audit.pictures(examined, rows, tmp_path)
    assert len(pictures) == 8
    worst = sorted((row["location_change"] for row in rows), reverse=True)[:8]
    for picture, change in zip(pictures, worst, strict=True):
        assert f"PLC {change:.0f} %" in picture.caption
        row = next(row for row in rows if row["name"] == picture.image)
        assert f"(PRC {row['rank_change']})" in picture.caption
        assert f"class {row['predicted_after']}" in picture.caption
        assert list(picture.files) == ["clean", "attacked"]
        clean, attacked = (Image.open(tmp_path / name) for name in picture.files.values())
        assert clean.size == attacked.size
        assert max(clean.size) <= 448
        assert clean.tobytes() != attacked.tobytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {name for picture in pictures for name in picture.files.values()}


def test_pictures_are_told_as_the_attack_that_is_shown(tmp_path: Path):
    """Rows that say otherwise are what an attack in another batch may have come to."""
    examined = subject(of_twelve_colours(cells(Shifted())), patchwork(4), [0, 1, 2, 3])
    settings = PAPER.model_copy(update={"steps": 10, "margin": 2})
    rows = [row for row in rows_of(settings, examined) if row["location_change"] > 0]
    other = [row | {"activation_after": 99.0, "x0": 31, "x1": 32} for row in rows]
    audit = SpatialMisalignment(settings)
    shown, again = (
        audit.pictures(examined, said, tmp_path / name)
        for name, said in (("shown", rows), ("again", other))
    )
    assert shown == again != []
    for picture in shown:
        for name in picture.files.values():
            drawn = (tmp_path / "again" / name).read_bytes()
            assert drawn == (tmp_path / "shown" / name).read_bytes()


def test_no_picture_where_nothing_moved(tmp_path: Path):
    model = network(cells(nn.Hardshrink(0.5)), torch.eye(3), [0, 1, 2])
    examined = subject(model, one_bright_cell([1], [2], BRIGHT), [0])
    assert SpatialMisalignment(PAPER).pictures(examined, rows_of(PAPER, examined), tmp_path) == []
