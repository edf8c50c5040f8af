"""The audit: which images and prototypes it attacks, when an image is decided, what is counted."""

import json

import pytest
import torch
from patch_models import image_of_cells, map_model, patch_model, random_images, subject_of
from PIL import Image
from pydantic import ValidationError

from protofast.audits import head_on_stomach
from protofast.audits.audit import skipped
from protofast.audits.head_on_stomach import PAPER, RELEASED, TARGETED, HeadOnStomach


def _audit(settings=PAPER, **changes):
    return HeadOnStomach(settings.model_copy(update={"steps": 5, **changes}))


def _rows(audit, subject):
    return [row for unit in audit.units(subject) for row in audit.measure(subject, unit)]


def test_all_three_protocols_decide_every_image():
    subject = subject_of(patch_model(), random_images(12, 28, 28), wrong=(3,), batch_size=5)
    for settings in (PAPER, RELEASED, TARGETED):
        audit = _audit(settings, epsilon=0.2, step_size=0.05)
        rows = _rows(audit, subject)
        assert sorted(row["image"] for row in rows) == list(range(12))
        without = skipped(rows)
        assert without.pop("already wrong") == 1
        assert set(without) <= {"source covers every cell"}
        json.dumps(rows, allow_nan=False)
        decided = [row for row in rows if not row.get("skipped")]
        for row in decided:
            assert row["success"] or row["ranks_tried"] + row["passed_over"] == 5
            assert row["rank"] <= row["ranks_tried"] + row["passed_over"]
            there = "target" if settings is TARGETED else "elsewhere"
            if row["success"]:
                assert row[f"{there}_after"] > row["source_after"]
            assert row["elsewhere_before"] <= row["source_before"]
            assert 0 < row["change"] <= 0.2 * 255
        numbers = {number.key: number for number in audit.summarise(subject, rows)}
        share = 100 * sum(row["success"] for row in decided) / len(decided)
        assert numbers["success_rate"].value == pytest.approx(share)
        assert numbers["success_rate"].n == len(decided) == 11 - sum(without.values())
        assert len(decided) > 5
        tried = sum(row["ranks_tried"] for row in decided) / len(decided)
        assert numbers["mean_prototypes_tried"].value == pytest.approx(tried)
        kept = [row["class_after"] == row["label"] for row in decided if row["success"]]
        assert numbers["still_right"].n == len(kept)
        share = 100 * sum(kept) / len(kept) if kept else None
        assert numbers["still_right"].value == (share if share is None else pytest.approx(share))


def test_rows_do_not_depend_on_the_unit():
    subject = subject_of(patch_model(8, padding=4), random_images(6, 17, 26))
    for settings in (PAPER, RELEASED, TARGETED):
        audit = _audit(settings, prototypes=3)
        together = audit.measure(subject, range(6))
        assert together == [row for n in range(6) for row in audit.measure(subject, [n])]


def test_prototypes_are_tried_in_the_order_of_their_activation(monkeypatch):
    subject = subject_of(patch_model(), random_images(6, 28, 28))
    activations = subject.model(subject.load(range(6))).activations
    attacked = {n: [] for n in range(6)}
    attack = HeadOnStomach.attack

    def watched(self, subject, clean, aim):
        for position, prototype in zip(clean.positions, aim.prototypes, strict=True):
            attacked[int(position)].append(int(prototype))
        return attack(self, subject, clean, aim)

    monkeypatch.setattr(HeadOnStomach, "attack", watched)
    rows = _audit(epsilon=0.01, step_size=0.01 / 3, prototypes=4).measure(subject, range(6))
    tried = {row["ranks_tried"] for row in rows}
    assert len(tried) > 1  # images left at different ranks
    for row in rows:
        order = activations[row["image"]].argsort(descending=True).tolist()
        ranks = [order.index(prototype) + 1 for prototype in attacked[row["image"]]]
        assert ranks == sorted(ranks)
        assert (len(ranks), ranks[-1]) == (row["ranks_tried"], row["rank"])
        assert row["rank"] == row["ranks_tried"] + row["passed_over"] or not row["success"]
        assert row["prototype"] == order[row["rank"] - 1]


def test_images_are_drawn_at_random_until_there_are_enough_right_ones():
    wrong, elsewhere = (0, 5, 6, 7, 11, 13), (1, 2, 3)
    pixels = random_images(20, 28, 28)
    subject = subject_of(patch_model(), pixels, wrong=wrong, wrong_in_another=elsewhere)
    for settings, right in ((PAPER, 14), (RELEASED, 11)):
        audit = HeadOnStomach(settings.model_copy(update={"images": 8, "spare": 0}))
        unit = [n for unit in audit.units(subject) for n in unit]
        bad = set(wrong) | (set(elsewhere) if settings is RELEASED else set())
        assert len([n for n in unit if n not in bad]) == 8
        assert unit[-1] not in bad
        assert unit != sorted(unit)
        everything = HeadOnStomach(settings).units(subject)
        drawn = [n for unit in everything for n in unit]
        assert sorted(drawn) == list(range(20))
        assert len(set(drawn) - bad) == right
    small = subject_of(patch_model(), pixels, wrong=wrong, batch_size=4)
    units = HeadOnStomach(PAPER).units(subject)
    assert [len(unit) for unit in units] == [16, 4]
    assert HeadOnStomach(PAPER).units(small) == units
    other = subject_of(patch_model(), pixels, wrong=wrong, seed=1)
    assert HeadOnStomach(PAPER).units(other) != HeadOnStomach(PAPER).units(subject)


def test_released_draws_spare_images_and_counts_the_first_that_are_decided(tmp_path):
    full = image_of_cells((0, 0, 250), (6, 6, 250))  # the source covers every cell
    pixels = torch.stack([full if n < 4 else image_of_cells((3, 3, 240 - n)) for n in range(12)])
    subject = subject_of(map_model(), pixels, batch_size=4)
    audit = _audit(RELEASED, images=3, spare=7)
    rows = _rows(audit, subject)
    assert len(rows) == 10
    counted = audit.counted(rows)
    decided = [row["image"] for row in rows if row["image"] >= 4]
    assert [row["image"] for row in counted if not row.get("skipped")] == decided[:3]
    assert skipped(counted)["not needed: enough decided"] == len(decided) - 3
    assert audit.counted(counted) == counted
    assert audit.summarise(subject, rows) == audit.summarise(subject, counted)
    assert audit.summarise(subject, rows)[0].n == 3
    assert len(audit.pictures(subject, rows, tmp_path)) == 3
    assert (RELEASED.images, RELEASED.spare, PAPER.spare) == (200, 50, 0)
    assert skipped(_audit(PAPER).counted(rows)) == skipped(rows)  # fewer than 200


def test_only_wrong_images_give_no_number():
    subject = subject_of(patch_model(), random_images(3, 28, 28), wrong=(0, 1, 2))
    audit = _audit()
    rows = _rows(audit, subject)
    assert skipped(rows) == {"already wrong": 3}
    assert [number.value for number in audit.summarise(subject, rows)] == [None, None, None]


def test_flat_maps_and_full_sources_are_counted(tmp_path):
    flat, corners = image_of_cells(), image_of_cells((0, 0, 250), (6, 6, 250))
    one = image_of_cells((3, 3, 250))
    subject = subject_of(map_model(), torch.stack((flat, corners, one)))
    for settings in (PAPER, RELEASED, TARGETED):
        audit = _audit(settings)
        rows = audit.measure(subject, [0, 1, 2])
        assert [row.get("skipped") for row in rows] == [
            "flat map",
            "source covers every cell",
            None,
        ]
        passed_over = 1 if settings is RELEASED else 2  # of two prototypes
        assert [row["passed_over"] for row in rows] == [passed_over, passed_over, 0]
        assert [number.n for number in audit.summarise(subject, rows)][:2] == [1, 1]
        assert len(audit.pictures(subject, rows, tmp_path)) == 1


def _two_maps():
    """Prototypes whose maps are the first two channels, times 1 and 0.9."""
    model = map_model()
    model.prototypes[1] = torch.tensor([0.0, 0.9, 0.0])
    return model


def test_an_image_without_a_target_is_skipped_or_goes_on():
    image = image_of_cells((0, 0, 250), (6, 6, 250))  # the first prototype is everywhere
    image[1, 12:16, 12:16] = 250
    subject = subject_of(_two_maps(), image[None])
    (row,) = _audit(PAPER).measure(subject, [0])
    assert "skipped" not in row
    assert (row["rank"], row["prototype"]) == (2, 1)
    assert (row["ranks_tried"], row["passed_over"]) == (1, 1)
    assert row["reason"] == "source covers every cell"
    (row,) = _audit(RELEASED).measure(subject, [0])
    assert row["skipped"] == "source covers every cell"
    assert (row["ranks_tried"], row["passed_over"]) == (0, 1)


def test_released_attacks_what_is_outside_the_source_already():
    """Its code never asks; `paper` leaves such a prototype out."""
    plateau = [(row, column, 240) for row in range(3) for column in range(3)]
    subject = subject_of(map_model(), image_of_cells(*plateau, (5, 5, 250))[None])
    (row,) = _audit(PAPER, source_border=True).measure(subject, [0])
    assert row["skipped"] == "largest similarity outside the source already"
    (row,) = _audit(RELEASED, steps=0, random_start=False).measure(subject, [0])
    assert (row["success"], row["rank"]) == (True, 1)
    assert row["elsewhere_before"] > row["source_before"]


def test_released_skips_an_image_even_after_a_failure():
    image = image_of_cells((3, 3, 255), base=0)  # cannot be moved by so little
    image[1] = image_of_cells((0, 0, 250), (6, 6, 250), base=0)[0]
    subject = subject_of(_two_maps(), image[None])
    (row,) = _audit(RELEASED).measure(subject, [0])
    assert (row["skipped"], row["ranks_tried"]) == ("source covers every cell", 1)
    assert "success" not in row
    (row,) = _audit(PAPER).measure(subject, [0])
    assert (row["success"], row["ranks_tried"], row["passed_over"]) == (False, 1, 1)


def test_a_grid_of_one_cell_is_counted():
    subject = subject_of(patch_model(28), random_images(2, 28, 28))
    for settings in (PAPER, RELEASED, TARGETED):
        rows = _audit(settings).measure(subject, [0, 1])
        assert skipped(rows) == {"grid of one cell": 2}


def test_similarities_that_are_not_finite_are_counted():
    model = patch_model()
    subject = subject_of(model, random_images(2, 28, 28))
    model.backbone.bias.fill_(torch.nan)
    rows = _audit().measure(subject, [0, 1])
    assert skipped(rows) == {"similarities not finite": 2}
    json.dumps(rows, allow_nan=False)


def test_a_tie_is_counted_and_no_success():
    plateau = [(row, column, 200) for row in range(3) for column in range(3)]
    subject = subject_of(map_model(), image_of_cells(*plateau, (5, 5, 200), base=0)[None])
    audit = _audit(steps=0, random_start=False)
    aim = audit.aim(subject, audit.look(subject, [0]), torch.tensor([0]))
    assert not aim.sources[0, 5, 5]
    (row,) = audit.measure(subject, [0])
    assert (row["tied"], row["success"]) == (True, False)
    assert row["source_after"] == row["elsewhere_after"]


def test_protocols_differ_in_cells_and_pixels_as_stated():
    subject = subject_of(map_model(), image_of_cells((3, 3, 250), grid=(6, 9))[None])
    aims = {}
    for settings in (PAPER, RELEASED, TARGETED):
        audit = _audit(settings)
        clean = audit.look(subject, [0])
        aims[settings.protocol] = audit.aim(subject, clean, clean.ranked[:, 0])
    paper, released, targeted = aims["paper"], aims["released"], aims["targeted"]
    assert torch.equal(paper.targets, ~paper.sources)
    assert paper.pixels.all()
    assert released.targets.all()
    assert released.pixels.all()
    assert targeted.targets.sum() == 1
    assert not (targeted.targets & targeted.sources).any()
    assert targeted.pixels.sum() == 16
    (row,), (column,) = (targeted.targets[0].any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    assert targeted.pixels[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].all()


def test_targets_are_drawn_anew_for_each_image_prototype_and_seed():
    pixels = image_of_cells((3, 3, 250), grid=(6, 9))[None].expand(40, -1, -1, -1)
    places = set()
    for seed in (0, 1):
        subject = subject_of(map_model(), pixels, seed=seed)
        audit = _audit(TARGETED)
        clean = audit.look(subject, range(40))
        aim = audit.aim(subject, clean, clean.ranked[:, 0])
        assert (aim.targets.flatten(1).sum(dim=1) == 1).all()
        assert not (aim.targets & aim.sources).any()
        found = aim.targets.flatten(1).int().argmax(dim=1)
        assert len(found.unique()) > 15
        places.add(tuple(found.tolist()))
    assert len(places) == 2


def test_pictures_show_the_farthest_moves_first(tmp_path):
    subject = subject_of(patch_model(), random_images(9, 28, 35), batch_size=4)
    audit = _audit(epsilon=0.2, step_size=0.05)
    rows = _rows(audit, subject)
    shown = audit.pictures(subject, rows, tmp_path / "new" / "folder")
    assert len(shown) == 6
    by_name = {row["name"]: row for row in rows}
    ways = []
    for picture in shown:
        row = by_name[picture.image]
        places = [row[f"{axis}_after"] - row[f"{axis}_before"] for axis in ("row", "column")]
        ways.append(sum(step**2 for step in places) if row["success"] else -1)
        assert f"Prototype {row['prototype']} of class" in picture.caption
        assert f"row {row['row_after']}, column {row['column_after']}" in picture.caption
        pair = [
            Image.open(tmp_path / "new" / "folder" / picture.files[name]) for name in picture.files
        ]
        assert list(picture.files) == ["clean", "attacked"]
        assert pair[0].size == pair[1].size == (320, 256)
        assert pair[0].tobytes() != pair[1].tobytes()
    assert ways == sorted(ways, reverse=True)
    again = audit.pictures(subject, rows, tmp_path / "again")
    assert again == shown


def test_of_targeted_failures_those_are_drawn_that_came_nearest_to_their_target(tmp_path):
    pixels = torch.stack([image_of_cells((3, 3, 250 - 9 * n)) for n in range(9)])
    subject = subject_of(map_model(), pixels)
    audit = _audit(TARGETED, prototypes=1)
    rows = _rows(audit, subject)
    assert not any(row["success"] for row in rows)
    # Elsewhere than in target and source, where a targeted attack gains nothing.
    for row in rows:
        row["elsewhere_after"] = row["target_after"] + (row["image"] % 3) / 10
    shown = [picture.image for picture in audit.pictures(subject, rows, tmp_path)]
    rows.sort(key=lambda row: row["source_after"] - row["target_after"])
    assert shown == [row["name"] for row in rows[:6]]


def test_settings_are_checked():
    assert [settings.protocol for settings in HeadOnStomach.protocols.values()] == list(
        HeadOnStomach.protocols
    )
    for change in ({"images": 0}, {"target": "everywhere"}, {"epsilon": -1.0}, {"epsilons": 1.0}):
        with pytest.raises(ValidationError):
            head_on_stomach.HeadOnStomachSettings(**change)
