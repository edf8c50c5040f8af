"""The attack itself: where its noise goes, and what it does to the prototype's map."""

import itertools

import numpy as np
import pytest
import torch
from patch_models import map_model, patch_model, random_images

from protofast.audits.cells import bounding_rectangle, chosen_cells, pixels_of_cells
from protofast.audits.head_on_stomach_attack import (
    cell_weights,
    head_on_stomach,
    make_head_disappear,
    prototype_maps,
    source_cells,
)
from protofast.heatmaps import high_activation_boxes, upsample


def _given(count, height, width, seed=0):
    return random_images(count, height, width, seed=seed).double() / 255


@pytest.mark.parametrize(
    ("size", "cell", "padding"), [((28, 28), 4, 0), ((17, 26), 8, 4), ((30, 19), 7, 3)]
)
@pytest.mark.parametrize("random_start", [True, False, "unmasked"])
def test_noise_stays_in_the_ball_and_in_the_targets_pixels(size, cell, padding, random_start):
    model, images = patch_model(cell, padding=padding), _given(4, *size)
    maps = prototype_maps(model, images, torch.tensor([0, 1, 4, 5]))
    grid = (maps.shape[1], maps.shape[2])
    sources = source_cells(maps, size)
    targets = ~sources
    targets[0] = chosen_cells([(grid[0] - 1, 0)], grid)
    images[1] = 0.0  # at the bounds
    images[2] = 1.0
    moved = head_on_stomach(
        model,
        images,
        torch.tensor([0, 1, 4, 5]),
        targets,
        epsilon=0.03,
        step_size=0.02,
        steps=7,
        random_start=random_start,
    )
    noise = moved.images - images
    allowed = pixels_of_cells(targets, size).unsqueeze(1).expand_as(noise)
    assert noise[~allowed].eq(0).all()
    assert noise.abs().max() <= 0.03 + 1e-12
    assert moved.images.min() >= 0
    assert moved.images.max() <= 1
    assert (noise != 0).flatten(1).any(dim=1).all()


def test_with_cells_that_see_themselves_alone_only_the_target_changes():
    model, images = patch_model(), _given(3, 28, 28)
    prototypes = torch.tensor([0, 3, 5])
    before = prototype_maps(model, images, prototypes)
    targets = torch.stack([chosen_cells([place], (7, 7)) for place in ((0, 0), (6, 3), (2, 5))])
    moved = head_on_stomach(model, images, prototypes, targets, epsilon=0.3, step_size=0.05)
    assert torch.equal(moved.maps[~targets], before[~targets])
    assert (moved.maps[targets] > before[targets]).all()
    assert torch.equal(moved.maps, prototype_maps(model, moved.images, prototypes))
    assert torch.equal(moved.output.logits, model(moved.images).logits)


def test_the_prototype_goes_where_it_is_sent():
    """Its map is the image's first channel, so that the largest value can be put anywhere."""
    model = map_model()
    images = torch.full((2, 3, 28, 36), 0.5, dtype=torch.float64)
    images[:, 0, 4:8, 4:8] = 0.52
    targets = torch.stack([chosen_cells([place], (7, 9)) for place in ((6, 8), (0, 7))])
    moved = head_on_stomach(model, images, torch.tensor([0, 1]), targets)
    assert moved.maps.flatten(1).argmax(dim=1).tolist() == [6 * 9 + 8, 7]
    assert (moved.images - images)[:, 1:].abs().max() <= 8 / 255 + 1e-12


def test_a_batch_is_its_images_one_by_one():
    model, images = patch_model(8, padding=4), _given(8, 17, 26)
    prototypes = torch.arange(8) % 6
    sources = source_cells(prototype_maps(model, images, prototypes), (17, 26))
    ids = torch.tensor([5, 3, 99, 0, 1, 2, 7, 12])
    together = head_on_stomach(model, images, prototypes, ~sources, seed=3, image_ids=ids)
    for n in range(8):
        alone = head_on_stomach(
            model,
            images[n : n + 1],
            prototypes[n : n + 1],
            ~sources[n : n + 1],
            seed=3,
            image_ids=ids[n : n + 1],
        )
        assert torch.equal(alone.images[0], together.images[n])
        assert torch.equal(alone.maps[0], together.maps[n])
        assert torch.equal(alone.sources[0], together.sources[n])
    other = head_on_stomach(model, images, prototypes, ~sources, seed=4, image_ids=ids)
    assert not torch.equal(other.images, together.images)


def test_the_model_is_left_as_it_was():
    model = patch_model().requires_grad_(True).train()
    images = _given(1, 28, 28)
    head_on_stomach(model, images, torch.tensor([0]), torch.ones(1, 7, 7, dtype=torch.bool))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def _released_objective(g, targets, sources):
    """As the released code computes it, cell by cell (similarity_score, in our words)."""
    wanted = [tuple(cell) for cell in targets.nonzero().tolist()]
    of_sources = g.copy()
    for cell in wanted:
        of_sources[cell] = 0
    left = [of_sources[tuple(cell)] for cell in sources.nonzero().tolist()]
    return np.mean([g[cell] for cell in wanted]) - np.mean(left)


def test_the_objective_is_that_of_the_released_code():
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        g = torch.randn(7, 7, dtype=torch.float64, generator=generator)
        targets = bounding_rectangle(torch.rand(7, 7, generator=generator) < 0.08)
        sources = bounding_rectangle(torch.rand(7, 7, generator=generator) < 0.08)
        if targets.any() and sources.any():
            ours = (g * cell_weights(targets[None], sources[None])[0]).sum()
            expected = _released_objective(g.numpy(), targets, sources)
            assert float(ours) == pytest.approx(expected, abs=1e-12)


def test_a_rectangle_that_is_the_whole_grid_leaves_the_mean_of_the_map():
    """The released success rate: the minus term vanishes, with its gradient."""
    sources = torch.zeros(1, 7, 7, dtype=torch.bool)
    sources[0, 2:5, 3:6] = True
    targets = bounding_rectangle(~sources)
    assert targets.all()
    assert torch.equal(
        cell_weights(targets, sources), torch.full((1, 7, 7), 1 / 49, dtype=torch.float64)
    )
    disjoint = cell_weights(~sources, sources)[sources]
    assert disjoint.tolist() == [-1 / 9] * 9


def test_sources_are_the_cells_of_the_95th_percentile_box():
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    peak = torch.exp(-((rows - 2) ** 2 + (columns - 4) ** 2) / 3)
    maps = torch.stack((peak, torch.ones(7, 7)))
    x0, y0, x1, y1 = high_activation_boxes(upsample(maps, (224, 224)))[0].tolist()
    for border in (False, True):
        found = source_cells(maps, (224, 224), border=border)
        past = 0 if border else 1
        expected = {
            (row, column)
            for row, column in itertools.product(range(7), range(7))
            if y0 // 32 <= row <= (y1 - past) // 32 and x0 // 32 <= column <= (x1 - past) // 32
        }
        assert {tuple(cell) for cell in found[0].nonzero().tolist()} == expected
        assert (2, 4) in expected
        assert found[1].all()  # flat


def test_a_head_disappears_by_noise_in_its_box():
    model, images = patch_model(), _given(4, 28, 28)
    prototypes = torch.tensor([0, 1, 3, 5])
    before = prototype_maps(model, images, prototypes)
    attacked = make_head_disappear(model, images, prototypes, epsilon=0.2, step_size=0.02)
    after = prototype_maps(model, attacked, prototypes)
    assert (after.amax(dim=(1, 2)) < before.amax(dim=(1, 2))).all()
    boxes = high_activation_boxes(upsample(before, (28, 28))).tolist()
    for one, (x0, y0, x1, y1) in zip(attacked - images, boxes, strict=True):
        one[:, y0:y1, x0:x1] = 0
        assert one.eq(0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prototypes": torch.tensor([0])}, "prototypes must be int64 \\[2\\]"),
        ({"prototypes": torch.tensor([0.0, 1.0])}, "prototypes must be int64"),
        ({"targets": torch.ones(2, 7, 6, dtype=torch.bool)}, "targets must be bool"),
        ({"targets": torch.ones(2, 7, 7)}, "targets must be bool"),
        ({"targets": torch.zeros(2, 7, 7, dtype=torch.bool)}, "needs a target cell"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    given = {
        "prototypes": torch.tensor([0, 1]),
        "targets": torch.ones(2, 7, 7, dtype=torch.bool),
    } | change
    with pytest.raises(ValueError, match=message):
        head_on_stomach(patch_model(), _given(2, 28, 28), **given)
