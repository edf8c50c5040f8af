"""The attack of the spatial-misalignment benchmark on an ordinary network."""

import dataclasses

import pytest
import torch
from misaligned_models import (
    numbers_of,
    rows_of,
    subject,
)
from torch import nn

from protofast.attacks import uniform_noise
from protofast.audits.misalignment_attack import (
    PAPER,
    RELEASED,
    attack,
    choose,
    examine,
)
from protofast.audits.misalignment_metrics import protected_boxes
from protofast.models import ProtoPNet, build_backbone

PIXELS = torch.randint(
    0, 256, (6, 3, 48, 48), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
)
LABELS = [0, 1, 2, 0, 1, 2]


@pytest.fixture(scope="module")
def small() -> ProtoPNet:
    torch.manual_seed(0)
    model = ProtoPNet(
        build_backbone("small"), num_classes=3, prototypes_per_class=4, depth=8, input_size=(48, 48)
    )
    return model.eval().requires_grad_(False)


def everything(model, images):
    return torch.ones(len(images), model.num_prototypes, dtype=torch.bool)


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
