"""What holds of every attack: ball, mask, bounds, determinism, independence of the batch."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_classifier import random_images, small_classifier
from rough_objective import rough
from torch import nn

from protofast.attacks import cross_entropy, frozen, misclassified, pgd, uniform_noise
from protofast.data.randomness import uniform

QUICK = settings(max_examples=40, deadline=None)


def test_the_rough_objective_is_what_it_says():
    images = random_images(2).requires_grad_()
    (gradient,) = torch.autograd.grad(rough(images, None).sum(), images)
    assert 0.02 < gradient.isnan().float().mean() < 0.08
    assert 0.3 < (gradient > 0).float().mean() < 0.7
    sizes = gradient.nan_to_num(0).abs()
    assert sizes.max() > 1e6
    assert sizes.min() < 1e-3


@st.composite
def attacks(draw):
    norm = draw(st.sampled_from(["linf", "l2"]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    count = draw(st.integers(1, 4))
    seed = draw(st.integers(-(2**63), 2**64))
    images = random_images(count, seed=seed % 1000, dtype=dtype)
    images[0, :, 0] = 0.0  # ends of the range, where rounding and bounds meet
    images[0, :, 1] = 1.0
    epsilon = draw(st.floats(0, 0.6))
    if norm == "linf" and draw(st.booleans()):
        of_epsilon = draw(st.sampled_from([torch.float32, torch.float64]))
        epsilon = torch.tensor([epsilon, 0.0, 0.3], dtype=of_epsilon).view(3, 1, 1)
    mask = None
    if draw(st.booleans()):
        mask = random_images(count, seed=seed % 999)[:, :1] > draw(st.sampled_from([0.0, 0.5, 1.0]))
    options = {
        "epsilon": epsilon,
        "step_size": draw(st.floats(0, 1)),
        "steps": draw(st.integers(0, 4)),
        "random_start": draw(st.sampled_from([True, False, "unmasked"])),
        "bounds": draw(st.sampled_from([(0.0, 1.0), None])),
        "mask": mask,
        "norm": norm,
        "restarts": draw(st.integers(1, 2)),
        "keep": draw(st.sampled_from(["last", "best"])),
        "seed": seed,
    }
    return images, options


@QUICK
@given(attacks())
def test_the_outcome_is_in_ball_mask_and_bounds(attack):
    images, options = attack
    adversarial = pgd(rough, images, **options).images
    assert adversarial.dtype == images.dtype
    assert adversarial.isfinite().all()
    moved = adversarial.double() - images.double()
    if options["norm"] == "linf":
        epsilon = torch.as_tensor(options["epsilon"], dtype=torch.float64)
        assert (moved.abs() <= epsilon + 1e-15).all()
    else:
        rounding = torch.finfo(images.dtype).eps * math.sqrt(moved[0].numel())
        assert (moved.flatten(1).norm(dim=1) <= options["epsilon"] + rounding).all()
    if options["mask"] is not None:
        outside = ~options["mask"].expand_as(images)
        assert torch.equal(adversarial[outside], images[outside])
    if options["bounds"] is not None:
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


@QUICK
@given(attacks(), st.randoms(use_true_random=False))
def test_an_image_is_attacked_alike_in_every_batch(attack, random):
    """To the last bit; but an L2 step divides by a length, whose sum may be taken otherwise."""
    images, options = attack
    ids = torch.tensor([random.randrange(-(2**63), 2**63) for _ in images])
    together = pgd(rough, images, image_ids=ids, **options)
    again = pgd(rough, images, image_ids=ids, **options)
    for one, other in zip(together, again, strict=True):
        assert torch.equal(one, other)
    mask = options.pop("mask")
    equal = {"rtol": 0, "atol": 0}
    if options["norm"] == "l2":
        equal = {"rtol": 0, "atol": 1e-5 if images.dtype == torch.float32 else 1e-12}
    for row in reversed(range(len(images))):
        alone = pgd(
            rough,
            images[row : row + 1],
            image_ids=ids[row : row + 1],
            mask=None if mask is None else mask[row : row + 1],
            **options,
        )
        torch.testing.assert_close(alone.images[0], together.images[row], **equal)
        assert alone.steps[0] == together.steps[row]
        if options["steps"] == 0:  # the random start alone
            assert torch.equal(alone.images[0], together.images[row])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_network_is_attacked_alike_in_every_batch(norm):
    model, images = small_classifier(dtype=torch.float64), random_images(6, dtype=torch.float64)
    labels, ids = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([5, 3, 8, 2, 0, 9])
    options = {"epsilon": 0.2, "step_size": 0.05, "steps": 6, "norm": norm, "seed": 4}
    whole = pgd(misclassified(model, labels), images, image_ids=ids, **options)
    for rows in ([4], [3, 0, 5]):
        some = pgd(misclassified(model, labels[rows]), images[rows], image_ids=ids[rows], **options)
        torch.testing.assert_close(some.images, whole.images[rows], rtol=0, atol=1e-12)
        assert torch.equal(some.steps, whole.steps[rows])


def test_seed_restart_and_image_key_the_start():
    images = torch.full((2, 3, 8, 8), 0.5)

    def start(seed, ids):
        return pgd(
            rough,
            images,
            epsilon=0.1,
            step_size=0.0,
            steps=0,
            seed=seed,
            image_ids=torch.tensor(ids),
        ).images

    base = start(0, [0, 1])
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, start(1, [0, 1]))
    assert torch.equal(base.flip(0), start(0, [1, 0]))
    assert torch.equal(start(0, [7, 7])[0], start(0, [7, 7])[1])
    spread = (base - 0.5).abs()
    assert spread.max() > 0.095
    assert 0.04 < spread.mean() < 0.06


def test_the_noise_is_the_projects_hash_of_its_keys():
    """So that the bits can be had again elsewhere: uniform(...) of the data, cut to 24 bits."""
    ids = torch.tensor([3, -7, 2**62])
    noise = uniform_noise((2, 3, 5), ids, seed=11, restart=2, dtype=torch.float64)
    expected = (uniform(30, 7, 11, 2, ids.numpy()) * 2**24).astype("int64") / 2**24
    assert torch.equal(noise.view(3, 30), torch.from_numpy(expected))
    single = uniform_noise((2, 3, 5), ids, seed=11, restart=2)
    assert torch.equal(single.double(), noise)


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_parameters_mode_and_images_stay_as_they_were(caller):
    model = small_classifier()
    model[1] = nn.Sequential(nn.BatchNorm2d(8), nn.Tanh()).eval()
    model.train()
    model[1].eval()
    images, labels = random_images(3), torch.tensor([0, 1, 2])
    before = images.clone()
    with caller():
        given = images.clone()  # under inference_mode, an inference tensor
        attacked = pgd(cross_entropy(model, labels), given, epsilon=0.1, step_size=0.1, steps=2)
        assert torch.equal(given, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not model[1].training
    assert not attacked.images.requires_grad
    assert not torch.equal(attacked.images, before)


def test_frozen_gives_every_module_its_mode_and_every_parameter_its_gradients_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    with contextlib.suppress(KeyError), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [
        True,
        False,
        True,
        True,
    ]
