"""Masking: what is painted over is what the paper intends, wherever an image sits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from protofast.data import Augmentation, Batches, Masking, MemoryImageSet
from protofast.data.image_set import ImageSet
from protofast.data.randomness import uniform, uniform_at

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _masking(**changes: object) -> Masking:
    return Masking(**({"mean": MEAN, "std": STD, "probability": 1.0} | changes))  # type: ignore[arg-type]


def _images(count: int, *size: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, *size, generator=generator)


def test_half_of_the_images_are_masked_and_the_rest_untouched() -> None:
    images, index = _images(1500, 16, 16), torch.arange(1500)
    masked = _masking(probability=0.5)(images, index, seed=3, epoch=5)
    changed = (masked != images).flatten(1).any(dim=1)
    assert 0.45 < float(changed.double().mean()) < 0.55
    other = _masking(probability=0.5)(images, index, seed=3, epoch=6)
    both = changed & (other != images).flatten(1).any(dim=1)
    assert 0.2 < float(both.double().mean()) < 0.3, "another epoch masks others"


def test_rectangles_have_all_intended_sizes_and_reach_every_border() -> None:
    height, width = 32, 48
    one = _masking(rectangles=(1, 1), fills=("mean",))
    masked = one(_images(1500, height, width) + 2.0, torch.arange(1500), seed=0, epoch=0)
    painted = (masked - torch.tensor(MEAN)[:, None, None]).abs().amax(dim=1) == 0  # [N, S, T]
    rows, columns = painted.any(dim=2), painted.any(dim=1)
    assert torch.equal(painted, rows[:, :, None] & columns[:, None, :]), "each is one rectangle"
    tall, wide = rows.sum(1), columns.sum(1)
    # From an eighth (included) to half (excluded) of the side, as 28 ... 111 of 224.
    assert sorted(set(tall.tolist())) == list(range(4, 16))
    assert sorted(set(wide.tolist())) == list(range(6, 24))
    assert abs(float(np.corrcoef(tall, wide)[0, 1])) < 0.1
    middle = (tall.double() / height).mean(), (wide.double() / width).mean()
    assert all(float(share) == pytest.approx(0.3, abs=0.02) for share in middle)
    assert rows[:, 0].any()
    assert rows[:, -1].any()
    assert columns[:, 0].any()
    assert columns[:, -1].any()
    share = painted.double().mean(dim=0)
    torch.testing.assert_close(share, share.flip(0, 1), rtol=0, atol=0.06)


def test_one_to_five_rectangles_are_equally_likely() -> None:
    masking = _masking(size=(0.02, 0.02), fills=("mean",))  # one pixel of 50 each
    masked = masking(_images(2000, 50, 50) + 2.0, torch.arange(2000), seed=0, epoch=0)
    pixels = (masked[:, 0] < 1).flatten(1).sum(1)
    counts = torch.bincount(pixels, minlength=6)
    assert counts[0] == 0
    assert len(counts) == 6
    assert counts[1:].min() > 330
    assert counts[1:].max() < 470


@pytest.mark.parametrize("fill", ["mean", "noise", "noisy"])
def test_fills_are_the_normalised_ones_translated(fill: str) -> None:
    masking = _masking(rectangles=(1, 1), size=(1.0, 1.0), fills=(fill,))
    images = _images(40, 24, 24) * 0.7
    masked = masking(images, torch.arange(40), seed=0, epoch=0)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    normalised, before = (masked - mean) / std, (images - mean) / std
    if fill == "mean":
        assert torch.equal(masked, mean.expand_as(masked))
        return
    noise = normalised if fill == "noise" else normalised - before
    assert float(noise.min()) > -1e-5
    assert float(noise.max()) < 1 + 1e-5
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noise.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    flat = noise.flatten(2)
    assert float(torch.corrcoef(flat[0])[0, 1].abs()) < 0.2, "channels are noisy on their own"


def test_fills_are_equally_likely() -> None:
    masking = _masking(rectangles=(1, 1), size=(1.0, 1.0))
    masked = masking(torch.zeros(1500, 3, 2, 2), torch.arange(1500), seed=0, epoch=0)
    covered = masked[:, 0, 0, 0] >= MEAN[0] - 1e-6
    flat = (masked[:, 0] == torch.tensor(MEAN[0])).flatten(1).all(dim=1)
    for share in (flat, covered & ~flat, ~covered):
        assert float(share.double().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_rectangles_lie_over_one_another_as_if_painted_in_turn() -> None:
    masking = _masking(rectangles=(4, 9), size=(0.3, 0.9))
    images, seed, epoch = _images(12, 20, 14), 11, 2
    masked = masking(images, torch.arange(12), seed=seed, epoch=epoch)
    random = uniform(2 + 5 * 9, 20, seed, epoch, np.arange(12))
    noise = uniform(20 * 14 * 3, 21, seed, epoch, np.arange(12)).reshape(12, 20, 14, 3)
    mean, std = np.array(MEAN), np.array(STD)
    for position in range(12):
        picture = images[position].permute(1, 2, 0).double().numpy()
        for number in range(4 + int(random[position, 1] * 6)):
            high, wide, top, left, fill = random[position, 2 + 5 * number : 7 + 5 * number]
            tall, broad = int(20 * (0.3 + high * 0.6)), int(14 * (0.3 + wide * 0.6))
            row, column = int(top * (20 - tall + 1)), int(left * (14 - broad + 1))
            place = (slice(row, row + tall), slice(column, column + broad))
            if fill < 2 / 3:
                picture[place] = mean
            if fill >= 1 / 3:
                picture[place] += std * noise[position][place]
        expected = torch.from_numpy(picture.clip(0, 1)).permute(2, 0, 1).float()
        torch.testing.assert_close(masked[position], expected, rtol=0, atol=1e-6)


def test_an_image_does_not_depend_on_its_batch() -> None:
    masking, images, index = _masking(probability=0.7), _images(9, 20, 24), torch.arange(9) + 100
    whole = masking(images, index, seed=-4, epoch=7)
    turned = masking(images.flip(0), index.flip(0), seed=-4, epoch=7).flip(0)
    single = [masking(images[i : i + 1], index[i : i + 1], seed=-4, epoch=7) for i in range(9)]
    assert torch.equal(whole, turned)
    assert torch.equal(whole, torch.cat(single))
    assert not torch.equal(whole, masking(images, index, seed=-3, epoch=7))
    assert not torch.equal(whole, masking(images, index + 1, seed=-4, epoch=7))


def test_the_given_images_stay_and_the_result_stays_in_range() -> None:
    images = _images(30, 16, 16)
    before = images.clone()
    masked = _masking(rectangles=(5, 5))(images, torch.arange(30), seed=0, epoch=0)
    assert torch.equal(images, before)
    assert float(masked.min()) >= 0
    assert float(masked.max()) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_small_images_of_one_channel(size: tuple[int, int], dtype: torch.dtype) -> None:
    masking = _masking(mean=(0.5,), std=(0.25,))
    images = torch.full((6, 1, *size), 0.2, dtype=dtype)
    masked = masking(images, torch.arange(6), seed=0, epoch=0)
    assert masked.dtype == dtype
    assert masked.shape == images.shape
    assert (masked != images).flatten(1).any(dim=1).all()


def test_no_images_and_no_masking() -> None:
    images = _images(4, 8, 8)
    assert _masking(probability=0.0)(images, torch.arange(4), seed=0, epoch=0) is images
    none = _masking()(images[:0], torch.arange(0), seed=0, epoch=0)
    assert none.shape == (0, 3, 8, 8)


def test_what_is_not_a_number_stays_where_it_is_not_covered() -> None:
    images = torch.full((8, 3, 16, 16), torch.nan)
    masked = _masking(fills=("mean",))(images, torch.arange(8), seed=0, epoch=0)
    assert masked.isnan().flatten(1).any(dim=1).all()
    assert (~masked.isnan()).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"probability": 1.1},
        {"probability": float("nan")},
        {"rectangles": (0, 3)},
        {"rectangles": (4, 3)},
        {"rectangles": (1, 101)},
        {"size": (0.0, 0.5)},
        {"size": (0.6, 0.5)},
        {"size": (0.5, 1.5)},
        {"fills": ()},
        {"fills": ("mean", "black")},
        {"mean": (0.5,)},
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        _masking(**wrong)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[N, 3, S, T\].*got \[2, 1, 8, 8\] and \[2\]"):
        _masking()(torch.zeros(2, 1, 8, 8), torch.arange(2), seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"got \[2, 3, 8, 8\] and \[3\]"):
        _masking()(torch.zeros(2, 3, 8, 8), torch.arange(3), seed=0, epoch=0)


def test_batches_augment_first_and_mask_afterwards() -> None:
    source = ImageSet(
        classes=("a", "b"), labels=[0, 1, 0, 1], names=list("wxyz"), channels=3, size=(16, 16)
    )
    images = MemoryImageSet((_images(4, 16, 16) * 255).byte(), source=source)
    augmentation, masking = Augmentation(flip=0.5, brightness=0.4), _masking()
    batch = next(iter(Batches(images, 4, augment=[augmentation, masking], seed=5, epoch=3)))
    plain = next(iter(Batches(images, 4)))
    altered = augmentation(plain.images, plain.index, seed=5, epoch=3)
    assert torch.equal(batch.images, masking(altered, plain.index, seed=5, epoch=3))


def test_single_random_numbers_are_those_of_the_row() -> None:
    index = np.array([4, 9, 2], dtype=np.int64)
    whole = uniform(50, 1, 2, index)
    rows, places = np.array([0, 2, 2, 1]), np.array([49, 0, 7, 13])
    assert (uniform_at(rows, places, 1, 2, index) == whole[rows, places]).all()
