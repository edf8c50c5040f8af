"""Step by step: what an attack calls, which images leave it, and where a step may lead."""

import pytest
import torch
from plain_classifier import random_images, small_classifier
from rough_objective import rough
from torch.nn import functional as F

from protofast.attacks import Scored, cross_entropy, fgsm, misclassified, pgd


def test_one_forward_and_one_backward_a_step_for_the_whole_batch():
    calls = {"forward": 0, "backward": 0}

    def objective(images, index):
        calls["forward"] += 1
        if images.requires_grad:
            images.register_hook(lambda _: calls.__setitem__("backward", calls["backward"] + 1))
        return images.square().sum(dim=(1, 2, 3))

    images = random_images(5)
    pgd(objective, images, epsilon=0.1, step_size=0.02, steps=7)
    assert calls == {"forward": 8, "backward": 7}
    calls.update(forward=0, backward=0)
    attacked = fgsm(objective, images, epsilon=0.1)
    assert calls == {"forward": 1, "backward": 1}
    assert attacked.values.isnan().all()


def test_finished_images_leave_and_the_others_do_not_notice():
    images = random_images(5, dtype=torch.float64) * 0.5
    stops = torch.tensor([0, 2, 9, 1, 9])
    seen = []

    def objective(images, index):
        seen.append(index.tolist())
        return Scored(images.sum(dim=(1, 2, 3)), stops[index] < len(seen))

    def endless(images, index):
        return images.sum(dim=(1, 2, 3))

    options = {"epsilon": 0.3, "step_size": 0.05, "steps": 4, "random_start": False}
    attacked = pgd(objective, images, **options)
    assert seen == [[0, 1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 4], [2, 4], [2, 4]]
    assert attacked.steps.tolist() == [0, 2, 4, 1, 4]
    torch.testing.assert_close(
        attacked.images,
        images + 0.05 * attacked.steps.double().view(-1, 1, 1, 1),
        rtol=0,
        atol=1e-12,
    )
    others = pgd(endless, images, **options)
    assert torch.equal(attacked.images[[2, 4]], others.images[[2, 4]])
    assert torch.equal(attacked.values, attacked.images.sum(dim=(1, 2, 3)))


def test_an_image_that_is_wrong_from_the_start_is_not_touched():
    model, images = small_classifier(), random_images(12)
    with torch.no_grad():
        guessed = model(images).argmax(dim=1)
    labels = torch.where(torch.arange(12) % 2 == 0, guessed, (guessed + 1) % 4)
    attacked = pgd(
        misclassified(model, labels),
        images,
        epsilon=0.3,
        step_size=0.1,
        steps=5,
        random_start=False,
    )
    wrong = torch.arange(12) % 2 == 1
    assert torch.equal(attacked.images[wrong], images[wrong])
    assert (attacked.steps[~wrong] > 0).all()
    with torch.no_grad():
        loss = F.cross_entropy(model(attacked.images), labels, reduction="none")
    torch.testing.assert_close(loss, attacked.values)


def test_more_restarts_and_the_best_iterate_are_never_worse():
    images = random_images(8, seed=3)
    # Steps far too long for its waves, so that the last iterate is seldom the best.
    options = {"epsilon": 0.1, "step_size": 0.09, "steps": 5}
    last = pgd(rough, images, **options)
    best = pgd(rough, images, keep="best", **options)
    restarted = pgd(rough, images, keep="best", restarts=4, **options)
    assert (best.values >= last.values).all()
    assert (best.values > last.values).any()
    assert (restarted.values >= best.values).all()
    assert (restarted.values > best.values).any()
    for attacked in (last, best, restarted):
        assert torch.equal(rough(attacked.images, None).float(), attacked.values)


def test_a_restart_that_finishes_is_taken_and_ends_the_search():
    """An image that a restart finishes is done, even if another start has a larger value."""
    starts = []

    def objective(images, index):
        starts.append(index.tolist())
        finished = (index == 0) & torch.tensor(len(starts) == 2)
        return Scored(-torch.tensor(float(len(starts))) + 0 * images.sum((1, 2, 3)), finished)

    attacked = pgd(
        objective, random_images(2), epsilon=0.1, step_size=0.1, steps=0, restarts=3, keep="best"
    )
    assert starts == [[0, 1], [0, 1], [1]]
    assert attacked.values.tolist() == [-2, -1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False, "unmasked"])
def test_a_mask_of_nothing_leaves_the_images_as_they_are(norm, random_start):
    images = random_images(3)
    attacked = pgd(
        cross_entropy(small_classifier(), torch.tensor([0, 1, 2])),
        images,
        epsilon=0.5,
        step_size=0.1,
        steps=3,
        norm=norm,
        random_start=random_start,
        mask=torch.zeros(3, 1, 7, 9),
    )
    assert torch.equal(attacked.images, images)


def test_an_unmasked_start_shows_in_the_first_gradient_alone():
    """As the released code of Hoffmann et al.: what is outside the mask vanishes at step one."""
    images = random_images(2)
    mask = torch.zeros(1, 1, 7, 9, dtype=torch.bool)
    mask[..., 2:4, 3:6] = True
    seen = []

    def objective(images, index):
        seen.append(images.detach().clone())
        return Scored((images * 5).sin().sum(dim=(1, 2, 3)), torch.ones(2, dtype=torch.bool))

    options = {"epsilon": 0.1, "step_size": 0.05, "steps": 3, "mask": mask}
    attacked = pgd(objective, images, random_start="unmasked", **options)
    outside = ~mask.expand_as(images)
    assert (seen[0] != images)[outside].float().mean() > 0.9
    # The start shows what the mask forbids, so it cannot be the one that is finished.
    assert len(seen) == 2
    assert torch.equal(seen[1][outside], images[outside])
    assert torch.equal(attacked.images, seen[1])
    assert attacked.steps.tolist() == [1, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_step_where_the_gradient_is_not_a_number(norm):
    images = random_images(2, dtype=torch.float64)

    def objective(images, index):
        broken = (images[:, 0] - images[:, 0].detach()).sqrt().sum(dim=(1, 2))  # 0 * inf
        return images[:, 1].sum(dim=(1, 2)) + torch.where(index == 0, broken * 0, 0.0)

    attacked = pgd(
        objective, images, epsilon=9.0, step_size=0.1, steps=2, norm=norm, random_start=False
    )
    assert torch.equal(attacked.images[0, 0], images[0, 0])
    assert (attacked.images[:, 1] > images[:, 1]).all()
    assert attacked.images.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_l2_steps_have_their_length_whatever_the_gradient_is(scale):
    images = random_images(2)

    def objective(images, index):
        return (images * scale).sum(dim=(1, 2, 3))

    attacked = pgd(
        objective,
        images,
        epsilon=5.0,
        step_size=0.25,
        steps=2,
        norm="l2",
        random_start=False,
        bounds=None,
    )
    lengths = (attacked.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.5, 0.5]), rtol=1e-5, atol=0)


def test_images_beyond_the_bounds_do_not_go_farther():
    images = torch.tensor([-0.5, 0.5, 1.5]).view(1, 3, 1, 1)

    def objective(images, index):
        return images.sum(dim=(1, 2, 3))

    options = {"epsilon": 0.2, "step_size": 0.2, "steps": 3, "random_start": False}
    up = pgd(objective, images, **options).images.flatten()
    down = pgd(lambda *args: -objective(*args), images, **options).images.flatten()
    torch.testing.assert_close(up, torch.tensor([-0.3, 0.7, 1.5]))
    torch.testing.assert_close(down, torch.tensor([-0.5, 0.3, 1.3]))
