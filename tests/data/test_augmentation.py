import dataclasses

import numpy as np
import pytest
import torch

from protofast.data import Augmentation
from protofast.data import augmentation as module

SIZE = (40, 56)


def cross(count: int = 1, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Smooth images in which every place looks different: [count, 3, S, T]."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij"
    )
    return torch.stack([x, y, (x + y) / 2]).expand(count, 3, *size).contiguous()


def test_none_returns_the_images_themselves() -> None:
    images = cross(3)
    assert Augmentation.none()(images, torch.arange(3), seed=0, epoch=0) is images


def test_every_kind_happens_and_half_are_flipped() -> None:
    count = 400
    augment = Augmentation.paper()
    random = module.uniform(module._SCALARS, 2, 0, 0, np.arange(count))
    chosen = augment._chosen_kinds(random[:, 0])
    shares = [float(chosen[kind].mean()) for kind in ("rotation", "skew", "shear")]
    assert all(0.27 < share < 0.40 for share in shares)
    assert sum(shares) == pytest.approx(1)
    moved = augment(cross(count), torch.arange(count), seed=0, epoch=0)
    flipped = moved[:, 0, :, -1].mean(1) < moved[:, 0, :, 0].mean(1)  # x grows to the right
    assert 0.42 < flipped.float().mean() < 0.58


def test_a_flip_alone_is_exact() -> None:
    images = torch.rand(16, 1, 9, 7)
    flipped = Augmentation(flip=1)(images, torch.arange(16), seed=0, epoch=0)
    assert torch.equal(flipped, images.flip(-1))
    some = Augmentation(flip=0.5)(images, torch.arange(16), seed=0, epoch=0)
    is_same = (some == images).flatten(1).all(1)
    is_flipped = (some == images.flip(-1)).flatten(1).all(1)
    assert (is_same ^ is_flipped).all()
    assert 0 < is_flipped.sum() < 16


@pytest.mark.parametrize("size", [(40, 40), (30, 70), (70, 30)])
@pytest.mark.parametrize("kind", ["rotation", "skew", "shear"])
def test_no_border_comes_into_view(kind: str, size: tuple[int, int]) -> None:
    """Each of the paper's operations shows the inside of the image only, as Augmentor's do."""
    make = {"rotation": module._rotations, "skew": module._skews, "shear": module._shears}[kind]
    amount = {"rotation": 15, "skew": 0.2, "shear": 10}[kind]
    random = module.uniform(4, 9, 0, np.arange(500))
    matrices = make(random, amount, size)
    corners = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)], dtype=float)
    seen = np.einsum("nij,kj->nki", matrices, corners)
    places = seen[..., :2] / seen[..., 2:]
    assert np.abs(places).max() < 1 + 1e-9
    # And not less than it must: some corner of the view touches the border.
    if kind == "rotation":
        assert np.abs(places).max(axis=(1, 2)) == pytest.approx(1)


def test_a_rotation_is_one() -> None:
    height, width = 30, 70
    random = module.uniform(4, 9, 1, np.arange(50))
    matrices = module._rotations(random, 15, (height, width))
    # In pixels it is a rotation times a zoom.
    to_pixels = np.diag([width / 2, height / 2])
    turned = to_pixels @ matrices[:, :2, :2] @ np.linalg.inv(to_pixels)
    product = turned @ turned.transpose(0, 2, 1)
    assert product[:, 0, 1] == pytest.approx(0, abs=1e-9)
    assert product[:, 0, 0] == pytest.approx(product[:, 1, 1])
    angle = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert np.abs(angle).max() <= 15
    assert angle.min() < -10
    assert angle.max() > 10


def test_a_skew_moves_one_or_two_corners_outwards() -> None:
    random = module.uniform(4, 9, 2, np.arange(300))
    matrices = module._skews(random, 0.2, (50, 50))
    corners = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)], dtype=float)
    # Where the corners of the image land in the altered one.
    landed = np.einsum("nij,kj->nki", np.linalg.inv(matrices), corners)
    shift = landed[..., :2] / landed[..., 2:] - corners[None, :, :2]
    moved = (np.abs(shift) > 1e-6).any(-1).sum(1)
    assert set(moved.tolist()) == {1, 2}
    assert 0.15 < (moved == 1).mean() < 0.35  # a corner is one of four equally likely sorts
    assert (shift * corners[None, :, :2] > -1e-6).all()
    assert np.abs(shift).max() <= 0.4 + 1e-6  # 0.2 of the side, in units of half of it


def test_distortion_is_smooth_and_bounded() -> None:
    images = cross(20, (224, 224))
    moved = Augmentation(distortion=5)(images, torch.arange(20), seed=0, epoch=0)
    shift = (moved[:, :2] - images[:, :2]) * 223
    assert shift.abs().max() <= 5.05
    assert shift.abs().max() > 3
    assert shift[:, :, :, [0, -1]].abs().max() < 0.6  # the border stays where it is


def test_all_kinds_together() -> None:
    images = cross(8)
    both = Augmentation(rotation=10, shear=10, kinds="all")(
        images, torch.arange(8), seed=0, epoch=0
    )
    one = Augmentation(rotation=10, shear=10)(images, torch.arange(8), seed=0, epoch=0)
    assert (both != one).flatten(1).any(1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_stay_in_range(channels: int) -> None:
    images = torch.rand(12, channels, 8, 8)
    augment = Augmentation(brightness=0.5, contrast=0.5, saturation=0.8)
    changed = augment(images, torch.arange(12), seed=0, epoch=0)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed != images).flatten(1).any(1).all()


def test_a_random_crop_keeps_the_stated_area() -> None:
    images = cross(200)
    cropped = Augmentation(crop_scale=0.5)(images, torch.arange(200), seed=0, epoch=0)
    spread = cropped[:, 0].amax((1, 2)) - cropped[:, 0].amin((1, 2))
    assert 0.66 < spread.min() < 0.76  # the square root of a half
    assert spread.max() > 0.97


def test_an_image_is_altered_by_its_own_numbers() -> None:
    images = cross(6)
    augment = Augmentation.hoffmann()
    index = torch.tensor([5, 0, 3, 17, 2, 9])
    together = augment(images, index, seed=4, epoch=2)
    for position in range(6):
        alone = augment(
            images[position : position + 1], index[position : position + 1], seed=4, epoch=2
        )
        assert torch.equal(alone[0], together[position])
    assert not torch.equal(together, augment(images, index, seed=4, epoch=3))
    assert not torch.equal(together, augment(images, index, seed=5, epoch=2))


def test_double_precision_and_channels_last_are_kept() -> None:
    images = cross(2).double().to(memory_format=torch.channels_last)
    moved = Augmentation.paper()(images, torch.arange(2), seed=0, epoch=0)
    assert moved.dtype == torch.float64
    reference = Augmentation.paper()(cross(2), torch.arange(2), seed=0, epoch=0)
    assert torch.allclose(moved.float(), reference, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rotation", -1),
        ("rotation", 90),
        ("skew", 1.5),
        ("flip", 2),
        ("crop_scale", 0),
        ("distortion", 50),
        ("distortion_grid", (1, 4)),
        ("kinds", "some"),
    ],
)
def test_wrong_settings_are_named(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        Augmentation(**{setting: value})  # type: ignore[arg-type]


def test_settings_are_frozen_and_shapes_checked() -> None:
    augment = Augmentation.paper()
    with pytest.raises(dataclasses.FrozenInstanceError):
        augment.flip = 0  # type: ignore[misc]
    with pytest.raises(ValueError, match="images must be"):
        augment(cross(3), torch.arange(2), seed=0, epoch=0)
    assert augment(cross(0), torch.arange(0), seed=0, epoch=0).shape == (0, 3, *SIZE)


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = cross(4)
    for augment in (Augmentation.hoffmann(), Augmentation(contrast=0.3, saturation=0.5)):
        here = augment(images, torch.arange(4), seed=0, epoch=0)
        there = augment(images.cuda(), torch.arange(4), seed=0, epoch=0)
        assert there.is_cuda
        assert torch.allclose(there.cpu(), here, atol=1e-4)
