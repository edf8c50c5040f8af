"""What can be odd about an image, a class or a network, and what the benchmark says of it."""

import json

import pytest
import torch
from misaligned_models import (
    BLUE,
    BRIGHT,
    FILL,
    GREEN,
    RED,
    Shifted,
    both_protocols,
    cells,
    network,
    numbers_of,
    one_bright_cell,
    patchwork,
    rows_of,
    subject,
)
from torch import Tensor, nn

from protofast.audits.audit import skipped
from protofast.audits.misalignment_attack import (
    PAPER,
    RELEASED,
    examine,
)


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


class NanWhereWhite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        white = (images > 0.99).flatten(1).all(dim=1)
        return images.masked_fill(white.view(-1, 1, 1, 1), torch.nan)


@both_protocols
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
    assert rows[1]["remarks"] == rows[2]["remarks"] == "", "of what has no result"
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
