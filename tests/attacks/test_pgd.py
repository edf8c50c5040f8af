"""What holds of every attack: ball, mask, bounds, determinism, independence of the batch."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_classifier import random_images, small_classifier
from torch import nn
from torch.nn import functional as F

from protofast.attacks import Scored, cross_entropy, fgsm, frozen, misclassified, pgd, uniform_noise
from protofast.data.randomness import uniform

QUICK = settings(max_examples=40, deadline=None)


def rough(images, index):
    """An objective of each pixel alone, with gradients of all signs and sizes, a few of them NaN.

    It computes with sums and products of pixels, and adds up integers, so that an image has the
    same bits in every batch.
    """
    fixed = images.detach()
    broken = (fixed * 1000 % 1) < 0.05
    zeros = torch.where(broken, images - fixed, 1.0).sqrt() * broken  # gradient 0 * inf
    waves = torch.where(fixed > 0.7, 1e6, torch.where(fixed > 0.4, 1.0, 1e-6))
    for root in range(9):
        waves = waves * (4 * images - root / 2)
    differentiable = (waves + 0.0 * zeros).sum(dim=(1, 2, 3))
    exact = (waves.detach().double() * 1e3).round().sum(dim=(1, 2, 3)) / 1e3
    return exact + (differentiable - differentiable.detach())


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


def test_no_images_at_all():
    def objective(images, index):
        raise AssertionError("there is nothing to look at")

    for norm in ("linf", "l2"):
        attacked = pgd(
            objective, torch.zeros(0, 3, 4, 4), epsilon=0.1, step_size=0.1, steps=3, norm=norm
        )
        assert [list(part.shape) for part in attacked] == [[0, 3, 4, 4], [0], [0]]


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


def test_the_noise_is_the_projects_hash_of_its_keys():
    """So that the bits can be had again elsewhere: uniform(...) of the data, cut to 24 bits."""
    ids = torch.tensor([3, -7, 2**62])
    noise = uniform_noise((2, 3, 5), ids, seed=11, restart=2, dtype=torch.float64)
    expected = (uniform(30, 7, 11, 2, ids.numpy()) * 2**24).astype("int64") / 2**24
    assert torch.equal(noise.view(3, 30), torch.from_numpy(expected))
    single = uniform_noise((2, 3, 5), ids, seed=11, restart=2)
    assert torch.equal(single.double(), noise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be finite and not negative"),
        ({"step_size": math.nan}, "step_size must be finite"),
        ({"epsilon": torch.tensor([0.1, -0.1, 0.0]).view(3, 1, 1)}, "epsilon must be finite"),
        ({"epsilon": torch.ones(2, 1, 1)}, "epsilon must be a number or a tensor that broadcasts"),
        ({"norm": "l2", "epsilon": torch.ones(3, 1, 1)}, r"broadcasts to \[2, 1, 1, 1\]"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"restarts": 0}, "restarts at least 1"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"keep": "first"}, "keep must be one of last, best"),
        ({"random_start": "masked"}, "random_start must be"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"mask": torch.full((1, 1, 4, 4), 0.5)}, "mask must be bool"),
        ({"mask": torch.ones(2, 1, 5, 4)}, "mask must broadcast to the images"),
        ({"evaluate": False, "keep": "best"}, "evaluate=False needs"),
        ({"image_ids": torch.zeros(3, dtype=torch.int64)}, "image_ids must be int64"),
    ],
)
def test_arguments_that_cannot_be_meant(options, message):
    given_options = {"epsilon": 0.1, "step_size": 0.1, "steps": 1, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        pgd(rough, torch.rand(2, 3, 4, 4), **given_options)


def test_objectives_that_could_never_take_a_step_are_refused():
    """An attack that silently takes no step is how published numbers went wrong."""
    images = torch.rand(2, 3, 4, 4)
    options = {"epsilon": 0.1, "step_size": 0.1, "steps": 1}
    with pytest.raises(ValueError, match="do not depend on the images"):
        pgd(lambda images, index: images.detach().sum(dim=(1, 2, 3)), images, **options)
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="do not depend on the images"):
        pgd(lambda images, index: weight * 2, images, **options)
    with pytest.raises(ValueError, match=r"values must be \[2\]"):
        pgd(lambda images, index: images.sum(), images, **options)
