"""The spatial-misalignment benchmark on networks of which it is known where they look."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from misaligned_models import (
    FILL,
    Shifted,
    cells,
    network,
    one_bright_cell,
    patchwork,
    subject,
)
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from protofast.alignment import alignment_step
from protofast.attacks import uniform_noise
from protofast.audits.audit import skipped
from protofast.audits.misalignment_attack import (
    PAPER,
    RELEASED,
    MisalignmentSettings,
    attack,
    choose,
    examine,
)
from protofast.audits.misalignment_metrics import protected_boxes
from protofast.audits.spatial_misalignment import SpatialMisalignment
from protofast.models import ProtoPNet, build_backbone

RED, GREEN, BLUE = torch.eye(3)
BRIGHT = (250, 20, 20)


def rows_of(settings, examined):
    audit = SpatialMisalignment(settings)
    return [row for unit in audit.units(examined) for row in audit.measure(examined, unit)]


def numbers_of(settings, examined):
    audit = SpatialMisalignment(settings)
    found = audit.summarise(examined, rows_of(settings, examined))
    return {number.key: number for number in found}


def everything(model, images):
    return torch.ones(len(images), model.num_prototypes, dtype=torch.bool)


# ----- networks of which it is known where they look -----


@pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=["paper", "released"])
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


@pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=["paper", "released"])
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
    colours = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    classes = [j // 3 for j in range(12)]
    honest = network(cells(), colours, classes)
    elsewhere = network(cells(Shifted()), colours, classes)
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


# ----- the attack -----


@pytest.fixture(scope="module")
def small() -> ProtoPNet:
    torch.manual_seed(0)
    model = ProtoPNet(
        build_backbone("small"), num_classes=3, prototypes_per_class=4, depth=8, input_size=(48, 48)
    )
    return model.eval().requires_grad_(False)


PIXELS = torch.randint(
    0, 256, (6, 3, 48, 48), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
)
LABELS = [0, 1, 2, 0, 1, 2]


def test_released_is_the_noise_to_the_bit_and_takes_no_step(small):
    """Also where other settings ask for steps: the released attack has none."""
    images, ids = PIXELS / 255, torch.arange(6) + 40
    for steps in (40, 1000):
        settings = RELEASED.model_copy(update={"steps": steps})
        seen = examine(small, images, everything(small, images), settings, image_ids=ids, seed=5)
        epsilon = 0.4 * small.std.view(-1, 1, 1)
        noise = uniform_noise((3, 48, 48), ids, seed=5, low=-epsilon, high=epsilon)
        assert torch.equal(seen.changed, torch.where(seen.free, images + noise, images))
    assert seen.changed.min() < 0
    assert seen.changed.max() > 1
    assert seen.free[:, :, -1].all()  # the last row and column are never protected
    assert seen.free[:, :, :, -1].all()


def test_the_loop_of_the_released_code_never_leaves_its_random_start(small):
    """Its loss, the cross entropy of one logit, has no gradient; so it is the noise, blended."""
    images, ids = PIXELS / 255, torch.arange(6)
    seen = examine(small, images, everything(small, images), RELEASED, image_ids=ids)
    epsilon = (0.4 * small.std).view(-1, 1, 1)
    x = images + uniform_noise((3, 48, 48), ids, seed=0, low=-epsilon, high=epsilon)
    for _ in range(4):
        x = x.detach().requires_grad_()
        blended = torch.where(seen.free, x, images)
        maps = small.similarity_map(small.features(blended), seen.chosen.prototypes)
        logit = maps.flatten(2).amax(dim=2)  # [6, 1]: a single class
        loss = nn.functional.cross_entropy(logit, torch.zeros(6, dtype=torch.int64))
        loss.backward()
        assert loss.item() == 0.0
        assert not x.grad.any()
        x = x + 0.01 * small.std.view(-1, 1, 1) * x.grad.sign()
        x = images + (x - images).clamp(-epsilon, epsilon)
    literal = torch.where(seen.free, x.detach(), images)
    torch.testing.assert_close(seen.changed, literal, rtol=0, atol=2e-7)


@pytest.mark.parametrize("prototypes", ["top_proto", "gt_protos"])
def test_the_attack_stays_in_its_ball_its_pixels_and_the_image(small, prototypes):
    settings = PAPER.model_copy(update={"prototypes": prototypes, "margin": 0})
    examined = subject(small, PIXELS, LABELS)
    images = examined.load(range(6))
    among = torch.tensor(LABELS).unsqueeze(1) == small.prototype_class
    seen = examine(small, images, among, settings, image_ids=torch.arange(6))
    moved = (seen.changed.double() - images.double()).abs()
    assert (moved <= (0.4 * small.std).double().view(-1, 1, 1)).all()
    open_ = seen.free.flatten(1).any(dim=1)
    assert open_.sum() >= 4
    assert (moved.amax(dim=(1, 2, 3))[open_] > 0.05).all()
    assert not moved[~seen.free.expand_as(moved)].any()
    assert seen.changed.min() >= 0
    assert seen.changed.max() <= 1
    k = 4 if prototypes == "gt_protos" else 1
    assert seen.chosen.prototypes.shape == (6, k)
    with torch.no_grad():
        maps = [
            small.similarity_map(small.features(some), seen.chosen.prototypes)
            for some in (images, seen.changed)
        ]
    before, after = (some.flatten(2).amax(dim=2).mean(dim=1) for some in maps)
    assert (after < before)[open_].all()
    assert torch.equal(seen.changed[~open_], images[~open_])


def test_steps_have_their_length_per_channel(small):
    images, ids = PIXELS / 255, torch.arange(6)
    start, end = (
        examine(
            small,
            images,
            everything(small, images),
            PAPER.model_copy(update={"steps": steps, "margin": 0}),
            image_ids=ids,
        ).changed
        for steps in (0, 3)
    )
    moved = (end - start).abs().amax(dim=(0, 2, 3))  # [channels]
    torch.testing.assert_close(moved, 0.03 * small.std, rtol=0, atol=1e-6)


def test_all_prototypes_of_the_class_are_protected_and_the_strongest_is_measured(small):
    settings = PAPER.model_copy(update={"prototypes": "gt_protos", "margin": 3, "steps": 2})
    examined = subject(small, PIXELS, LABELS)
    with torch.no_grad():
        maps = small.similarity_map(small.features(PIXELS / 255))  # [6, 12, 3, 3]
    boxes = protected_boxes(maps, (48, 48), margin=3)
    for n, row in enumerate(rows_of(settings, examined)):
        own = range(4 * LABELS[n], 4 * LABELS[n] + 4)
        strongest = max(own, key=lambda j: float(maps[n, j].max()))
        assert row["prototype"] == strongest
        assert row["prototype_class"] == LABELS[n]
        assert [row[key] for key in ("x0", "y0", "x1", "y1")] == boxes[n, strongest].tolist()
        covered = torch.zeros(48, 48, dtype=torch.bool)
        for j in own:
            x0, y0, x1, y1 = boxes[n, j].tolist()
            covered[y0:y1, x0:x1] = True
        assert row["protected"] == pytest.approx(100 * float(covered.double().mean()))


def test_pgd_lowers_the_similarity_far_more_than_noise(small):
    examined = subject(small, PIXELS, LABELS)
    paper, released = (numbers_of(settings, examined) for settings in (PAPER, RELEASED))
    gap = paper["activation_change"].value - released["activation_change"].value
    assert gap > 5


@pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize("prototypes", ["top_proto", "gt_protos"])
def test_a_batch_of_64_equals_64_batches_of_one(settings, prototypes):
    """With equal features (here averages of cells, in float64) to the last bit."""
    settings = settings.model_copy(update={"prototypes": prototypes, "steps": 12})
    colours = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    model = network(cells(Shifted()), colours, [j // 3 for j in range(12)]).double()
    labels = [n % 4 for n in range(64)]
    rows = [
        rows_of(settings, subject(model, patchwork(64), labels, batch_size=size))
        for size in (64, 1)
    ]
    assert rows[0] == rows[1]


def test_a_network_gives_the_same_numbers_in_any_batch(small):
    """Convolutions round differently for another batch; in float64 that is too little to count."""
    model = ProtoPNet.from_config(small.config)
    model.load_state_dict(small.state_dict())
    model = model.double().eval().requires_grad_(False)
    settings = PAPER.model_copy(update={"steps": 5})
    rows = [
        rows_of(settings, subject(model, PIXELS, LABELS, batch_size=size)) for size in (6, 4, 1)
    ]
    for others in rows[1:]:
        for row, other in zip(rows[0], others, strict=True):
            assert row.keys() == other.keys()
            for key, value in row.items():
                assert other[key] == (pytest.approx(value) if isinstance(value, float) else value)


def test_the_same_again_and_another_seed_something_else(small):
    examined = subject(small, PIXELS, LABELS, seed=1)
    settings = PAPER.model_copy(update={"steps": 3})
    first = rows_of(settings, examined)
    assert rows_of(settings, examined) == first
    assert rows_of(settings, dataclasses.replace(examined, seed=2)) != first


# ----- what can be odd about an image -----


def test_what_cannot_be_measured_is_said_and_counted():
    """A flat map: protected as a whole, all prototypes alike, no similarity to lose."""
    model = network(cells(), torch.stack((RED, GREEN, BLUE)), [0, 1, 2])
    pixels = one_bright_cell([1, 1, 2], [1, 1, 2], BRIGHT)
    pixels[1] = FILL
    labels = [0, 1, 2]  # of a class of its own, flat, wrong from the beginning
    rows = rows_of(PAPER, subject(model, pixels, labels))
    assert [row["skipped"] for row in rows] == ["", "", ""]
    assert rows[0]["remarks"] == rows[2]["remarks"] == ""
    assert rows[1]["remarks"].split() == [
        "flat_map",
        "nothing_to_attack",
        "tied_prototypes",
        "undefined_activation_change",
    ]
    assert rows[1]["protected"] == 100
    assert rows[1]["activation_change"] is None
    assert rows[1]["location_change"] == rows[1]["rank_change"] == 0
    numbers = numbers_of(PAPER, subject(model, pixels, labels))
    assert numbers["activation_change"].n == 2
    assert numbers["location_change"].n == numbers["accuracy_before"].n == 3
    assert numbers["accuracy_before"].value == pytest.approx(100 / 3)
    assert numbers["flat_map"].value == pytest.approx(100 / 3)
    assert "flat_map" not in numbers_of(PAPER, subject(model, pixels[[0, 2]], [0, 2]))


def test_a_flat_map_is_open_at_the_border_under_released():
    grey = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    model = network(cells(), torch.eye(3), [0, 1, 2])
    (row,) = rows_of(RELEASED, subject(model, grey, [0]))
    assert {"flat_map", "tied_prototypes"} == set(row["remarks"].split())
    assert row["protected"] == pytest.approx(100 * 31**2 / 32**2)
    assert row["location_change"] == 100
    (row,) = rows_of(PAPER, subject(model, grey, [0]))
    assert row["protected"] == 100
    assert row["location_change"] == row["activation_change"] == row["rank_change"] == 0


def test_a_model_that_was_training_is_looked_at_in_eval_mode_and_left_as_it_was():
    model = network(cells(nn.BatchNorm2d(3), nn.Dropout(0.5)), torch.eye(3), [0, 1, 2])
    images = patchwork(2) / 255
    among, ids = torch.ones(2, 3, dtype=torch.bool), torch.arange(2)
    expected = examine(model, images, among, PAPER, image_ids=ids)
    model.train().requires_grad_(True)
    model.backbone[2].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen = examine(model, images, among, PAPER, image_ids=ids)
    assert torch.equal(seen.changed, expected.changed)
    assert torch.equal(seen.after.activations, expected.after.activations)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_what_an_image_costs():
    assert SpatialMisalignment(PAPER).effort == 121
    assert SpatialMisalignment(RELEASED).effort == 2  # noise takes no steps


class NanWhereWhite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        white = (images > 0.99).flatten(1).all(dim=1)
        return images.masked_fill(white.view(-1, 1, 1, 1), torch.nan)


@pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=["paper", "released"])
def test_images_without_a_result_are_rows_that_say_why(settings):
    settings = settings.model_copy(update={"prototypes": "gt_protos"})
    # Classes of two, no and one prototypes.
    model = network(nn.Sequential(NanWhereWhite(), *cells()), torch.eye(3), [0, 0, 2])
    pixels = patchwork(4)
    pixels[1] = 255
    rows = rows_of(settings, subject(model, pixels, [0, 0, 1, 2]))
    assert [row["skipped"] for row in rows] == [
        "",
        "similarities that are not finite",
        "a class without prototypes",
        "",
    ]
    assert skipped(rows) == {
        "a class without prototypes": 1,
        "similarities that are not finite": 1,
    }
    assert rows[0].keys() == rows[1].keys() == rows[2].keys()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[1]["location_change"] is None
    alone = rows_of(settings, subject(model, pixels[[0, 3]], [0, 2]))
    assert alone[0]["activation_before"] == rows[0]["activation_before"]
    assert numbers_of(settings, subject(model, pixels, [0, 0, 1, 2]))["location_change"].n == 2
    nothing = numbers_of(settings, subject(model, pixels[[1]], [0]))
    assert all(number.value is None and number.n == 0 for number in nothing.values())


class NanBelowBlack(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.masked_fill(images < -1.01, torch.nan)  # black is -1.004


def test_an_image_that_breaks_the_network_under_attack_is_said_to():
    model = network(nn.Sequential(NanBelowBlack(), *cells()), torch.eye(3), [0, 1, 2])
    pixels = one_bright_cell([0, 0], [0, 0], BRIGHT)
    pixels[1, :, -4:] = 0  # and the noise goes below it
    rows = rows_of(RELEASED, subject(model, pixels, [0, 0]))
    assert [row["skipped"] for row in rows] == [
        "",
        "similarities that are not finite after the attack",
    ]
    assert rows[1]["activation_after"] is None
    assert (rows[1]["predicted"], rows[1]["predicted_after"]) == (rows[0]["predicted"], None)
    right = subject(model, pixels, [row["predicted"] for row in rows])
    numbers = numbers_of(RELEASED, right)
    assert (numbers["accuracy_before"].value, numbers["accuracy_after"].value) == (100, 50)
    assert (numbers["accuracy_change"].value, numbers["accuracy_change"].n) == (50, 2)
    assert numbers["location_change"].n == 1


def test_an_image_of_a_class_without_prototypes_counts_in_the_accuracies():
    model = network(cells(Shifted()), torch.eye(3), [0, 0, 1])
    settings = PAPER.model_copy(update={"prototypes": "gt_protos", "steps": 2})
    examined = subject(model, patchwork(3), [2, 2, 0])
    rows = rows_of(settings, examined)
    assert [row["skipped"] for row in rows] == ["a class without prototypes"] * 2 + [""]
    assert all(row["predicted_after"] is not None for row in rows)
    numbers = numbers_of(settings, examined)
    assert (numbers["accuracy_before"].n, numbers["location_change"].n) == (3, 1)


def test_similarities_below_0_count_as_0_as_released_and_stay_in_the_paper():
    options = {"metric": "squared_l2", "similarity": "linear"}  # minus the distance
    model = network(cells(Shifted()), torch.eye(3), [0, 1, 2], **options)
    examined = subject(model, patchwork(3), [0, 1, 2])
    rows = rows_of(PAPER.model_copy(update={"margin": 2}), examined)
    assert any(row["location_change"] > 0 for row in rows)
    for row in rows:
        assert row["activation_after"] <= row["activation_before"] < 0
        assert row["activation_change"] is None
        assert row["remarks"] == "undefined_activation_change"
    for row in rows_of(RELEASED, examined):
        assert row["activation_before"] == row["activation_after"] == 0
        assert row["location_change"] == row["rank_change"] == 0
        assert {"flat_map", "tied_prototypes"} < set(row["remarks"].split())


def test_prototypes_without_classes_all_count_as_rivals():
    model = network(cells(Shifted()), torch.eye(3), [0, 1, 2])
    examined = subject(model, patchwork(5), [0, 1, 2, 0, 1])
    with_classes = rows_of(PAPER, examined)
    model.prototype_class = None
    without = rows_of(PAPER, examined)
    assert all(row["prototype_class"] is None for row in without)
    assert sum(row["rank_change"] for row in without) >= sum(
        row["rank_change"] for row in with_classes
    )
    of_class = PAPER.model_copy(update={"prototypes": "gt_protos"})
    assert skipped(rows_of(of_class, examined)) == {"a class without prototypes": 5}


def test_the_strongest_prototype_is_the_first_of_those_that_tie():
    activations = torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, torch.nan], [5.0, 5.0, 5.0]])
    among = torch.tensor([[True, True, True], [True, True, True], [False, True, False]])
    chosen = choose(activations, among, several=False)
    assert chosen.strongest.tolist() == [1, 0, 1]
    assert chosen.tied.tolist() == [True, False, False]
    several = choose(activations, among, several=True)
    assert several.prototypes[2, 0] == 1
    assert several.counts.tolist() == [[True] * 3, [True] * 3, [True, False, False]]


def test_no_images_and_no_steps_and_no_radius(small):
    settings = PAPER.model_copy(update={"steps": 0})
    empty = torch.zeros(0, 3, 48, 48)
    chosen = choose(torch.zeros(0, 12), torch.ones(0, 12, dtype=torch.bool), several=True)
    free = torch.ones(0, 1, 48, 48, dtype=torch.bool)
    ids = torch.zeros(0, dtype=torch.int64)
    assert attack(small, empty, chosen, free, settings, image_ids=ids).shape == empty.shape
    still = PAPER.model_copy(update={"epsilon": 0.0, "steps": 2})
    for row in rows_of(still, subject(small, PIXELS, LABELS)):
        assert row["location_change"] == row["activation_change"] == row["rank_change"] == 0


# ----- the audit -----


def test_units_are_fixed_and_a_subset_is_drawn_by_the_seed():
    model = network(cells(), torch.eye(3), [0, 1, 2])
    many = subject(model, patchwork(150), [n % 3 for n in range(150)], batch_size=7)
    units = SpatialMisalignment(PAPER).units(many)
    assert [len(unit) for unit in units] == [64, 64, 22]
    assert [position for unit in units for position in unit] == list(range(150))
    some = SpatialMisalignment(PAPER.model_copy(update={"images": 70}))
    units = some.units(many)
    assert [len(unit) for unit in units] == [64, 6]
    drawn = [position for unit in units for position in unit]
    assert drawn == sorted(set(drawn))
    assert some.units(many) == units
    assert some.units(dataclasses.replace(many, seed=1)) != units


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
    colours = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    model = network(cells(Shifted()), colours, [j // 3 for j in range(12)])
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


def test_no_picture_where_nothing_moved(tmp_path: Path):
    model = network(cells(nn.Hardshrink(0.5)), torch.eye(3), [0, 1, 2])
    examined = subject(model, one_bright_cell([1], [2], BRIGHT), [0])
    assert SpatialMisalignment(PAPER).pictures(examined, rows_of(PAPER, examined), tmp_path) == []
