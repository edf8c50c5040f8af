"""JPEG round trips, classes that are compressed, and compression as augmentation."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from protofast.data import (
    Augmentation,
    Batches,
    CompressedImageSet,
    FileImageSet,
    ImageSet,
    JpegAugmentation,
    MemoryImageSet,
    Splits,
    compress_splits,
    compressed_classes,
    decode_image,
    open_birds,
    resize_image,
    round_trip,
)
from protofast.data.image_set import FileEntry

CODECS = ["simplejpeg", "pillow"]


def smooth(count: int, channels: int = 3, size: tuple[int, int] = (40, 56)) -> Tensor:
    """Pictures with edges and some noise, uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 7, generator=generator) * 255
    large = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    noise = 8 * torch.randn(count, channels, *size, generator=generator)
    return (large + noise).clamp(0, 255).to(torch.uint8)


def through_pillow(image: Tensor, quality: int) -> Tensor:
    """The released code's way, as plainly as it can be written."""
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "JPEG", quality=quality)
    read = torch.from_numpy(np.array(Image.open(buffer)))
    return read[None] if len(image) == 1 else read.permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [5, 20, 75])
def test_pillow_is_the_released_codes_round_trip(channels: int, quality: int) -> None:
    images = smooth(3, channels)
    found = round_trip(images, quality=quality, codec="pillow")
    expected = torch.stack([through_pillow(image, quality) for image in images])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_simplejpeg_differs_from_pillow_by_the_encoders_rounding_alone(channels: int) -> None:
    images = smooth(4, channels)
    ours = round_trip(images, quality=20)
    theirs = round_trip(images, quality=20, codec="pillow")
    difference = (ours.int() - theirs.int()).abs()
    assert difference.float().mean() < 1
    lost = (ours.int() - images.int()).abs()
    assert lost.float().mean() > 3 * difference.float().mean()
    lost_by_theirs = (theirs.int() - images.int()).abs().float().mean()
    assert lost.float().mean() == pytest.approx(float(lost_by_theirs), rel=0.02)


def test_both_codecs_read_a_file_alike() -> None:
    for image in smooth(3):
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=20)
        by_pillow = np.asarray(Image.open(buffer))
        data = simplejpeg.encode_jpeg(pixels, quality=20, colorsubsampling="420")
        assert np.array_equal(simplejpeg.decode_jpeg(buffer.getvalue()), by_pillow)
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(data))), simplejpeg.decode_jpeg(data)
        )


@pytest.mark.parametrize("codec", CODECS)
def test_chroma_is_halved_in_both_directions(codec: str) -> None:
    """Colours of single pixels are gone, also at the best quality; their luma is not."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, ::2], image[0, 1, 1::2] = 200, 102  # nearly the same luma, red and green rows
    found = round_trip(image, quality=100, codec=codec).float()
    assert float(found[0, 0].std(dim=0).mean()) < 5
    assert round_trip(image[:, :1], quality=100, codec=codec).float().std() > 90


@pytest.mark.parametrize("codec", CODECS)
def test_a_lower_quality_loses_more(codec: str) -> None:
    images = smooth(3)
    lost = [
        float((round_trip(images, quality=q, codec=codec).float() - images).abs().mean())
        for q in (95, 75, 20, 3)
    ]
    assert lost == sorted(lost)
    assert lost[0] > 0


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 35),
    width=st.integers(1, 35),
    channels=st.sampled_from([1, 3]),
    codec=st.sampled_from(CODECS),
    count=st.integers(0, 5),
    threads=st.integers(1, 4),
)
def test_any_size_and_number_of_threads(
    height: int, width: int, channels: int, codec: str, count: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(height * 36 + width)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    before = images.clone()
    found = round_trip(images, codec=codec, threads=threads)
    assert found.shape == shape
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(images, before)
    for one, image in zip(found, images, strict=True):
        assert torch.equal(one, round_trip(image[None], codec=codec)[0])


@pytest.mark.parametrize("codec", CODECS)
def test_memory_layouts_are_all_read(codec: str) -> None:
    images = smooth(4)
    expected = round_trip(images, codec=codec)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(round_trip(last, codec=codec), expected)
    assert torch.equal(round_trip(images[::2], codec=codec), expected[::2])
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(round_trip(turned, codec=codec), expected)


def test_what_is_no_image_is_refused() -> None:
    images = smooth(1)
    with pytest.raises(TypeError, match=r"must be uint8, got torch.float32"):
        round_trip(images.float())
    for wrong in (images[0], smooth(1, 2), images[:, :, :0]):
        with pytest.raises(ValueError, match=r"channels|pixels"):
            round_trip(wrong)
    for quality in (0, 101):
        with pytest.raises(ValueError, match="quality must be in 1 … 100"):
            round_trip(images, quality=quality)
    with pytest.raises(ValueError, match="codec must be one of simplejpeg, pillow"):
        round_trip(images, codec="jpeg2000")  # type: ignore[arg-type]


def test_the_choice_of_classes() -> None:
    assert compressed_classes(7, "none") == ()
    assert compressed_classes(7, "odd") == (1, 3, 5)
    assert compressed_classes(200, "odd", 5) == tuple(range(1, 200, 2))
    for count in (0, 1, 2, 7, 200):
        half = compressed_classes(count, "half", 3)
        assert len(set(half)) == count // 2
        assert list(half) == sorted(half)
        assert set(half) <= set(range(count))
    draws = [compressed_classes(200, "half", seed) for seed in range(20)]
    assert draws[3] == compressed_classes(200, "half", 3)
    assert len(set(draws)) == 20
    hit = np.bincount(np.concatenate(draws), minlength=200)
    assert 5 < hit.mean() < 15
    assert hit.std() == pytest.approx(np.sqrt(20 / 4), rel=0.3)  # as independent draws would be
    with pytest.raises(ValueError, match="none, half, odd"):
        compressed_classes(4, "even")  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path, write_picture: Callable[..., Path]) -> FileImageSet:
    entries = [
        FileEntry(
            write_picture(tmp_path / f"{k}.png", k, height=70, width=90),
            f"{k}.png",
            k % 3,
            (5, 3, 80, 60),
        )
        for k in range(6)
    ]
    return FileImageSet(entries, classes=("a", "b", "c"), size=(24, 32), description="pictures")


def test_files_are_compressed_after_cropping_and_before_resizing(files: FileImageSet) -> None:
    images = CompressedImageSet(files, [1, 2], quality=10)
    assert images.compressed.tolist() == [False, True, True] * 2
    assert images.description == (
        "pictures; 2 of 3 classes compressed to JPEG (quality 10, simplejpeg)"
    )
    for index, entry in enumerate(files.entries):
        expected = decode_image(entry.path)[:, 3:60, 5:80]
        if index % 3:
            expected = round_trip(expected[None], quality=10)[0]
        assert torch.equal(images[index].image, resize_image(expected, (24, 32)))
        assert images.file(index) == entry.path
        assert torch.equal(images.clean[index].image, files[index].image)
    for name in ("classes", "names", "channels", "size"):
        assert getattr(images, name) == getattr(files, name)


def test_files_may_be_compressed_after_resizing(files: FileImageSet) -> None:
    images = CompressedImageSet(files, [1, 2], quality=10, at="input")
    assert images.description.endswith(
        "compressed to JPEG (quality 10, simplejpeg, after resizing)"
    )
    for kept in (images, images.cached()):
        for index in range(6):
            expected = files[index].image
            if index % 3:
                expected = round_trip(expected[None], quality=10)[0]
            assert torch.equal(kept[index].image, expected)
            assert torch.equal(kept.clean[index].image, files[index].image)
    darker = images.altered(2, lambda image: image // 2)  # before resizing, so before compression
    expected = files.altered(2, lambda image: image // 2)
    assert torch.equal(darker, round_trip(expected[None], quality=10)[0])
    with pytest.raises(ValueError, match="at must be one of file, input, got 'screen'"):
        CompressedImageSet(files, [1], at="screen")  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", CODECS)
def test_images_in_memory_stay_compressed_and_know_the_clean_ones(
    files: FileImageSet, codec: str
) -> None:
    images = CompressedImageSet(files, [1], codec=codec)
    memory = images.cached(threads=2)
    assert isinstance(memory, MemoryImageSet)
    for kept in (
        memory,
        memory.cached(),
        memory.subset(range(6)),
        memory.subset(range(6)).cached(),
    ):
        for index in range(6):
            assert torch.equal(kept[index].image, images[index].image)
            assert torch.equal(kept.clean[index].image, files[index].image)
        assert not torch.equal(kept[1].image, kept.clean[1].image)
    some = memory.subset([4, 0])
    assert torch.equal(some[0].image, images[4].image)
    assert torch.equal(some.clean[0].image, files[4].image)
    assert some.clean.names == some.names
    batch = next(iter(Batches(memory, 6)))
    assert torch.equal(batch.images[4] * 255, images[4].image.float())


def test_images_that_nothing_was_done_to_are_their_own_clean_ones(files: FileImageSet) -> None:
    for images in (files, files.cached(), files.subset([1]), files.cached().subset([1])):
        assert images.clean is images


def test_the_same_change_in_memory_and_from_files(files: FileImageSet) -> None:
    def darker(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image // 2

    crop = decode_image(files.entries[2].path)[:, 3:60, 5:80]
    for images in (files, files.cached(), files.cached().subset(range(6))):
        seen: list[tuple[int, ...]] = []
        changed = images.altered(2, darker)
        assert seen == [(3, 57, 75)]
        assert torch.equal(
            changed, resize_image(decode_image(files.entries[2].path)[:, 3:60, 5:80] // 2, (24, 32))
        )
    by_hand = MemoryImageSet(255 - torch.stack([s.image for s in files]), source=files)
    seen = []
    assert torch.equal(by_hand.altered(2, darker), (255 - files[2].image) // 2)
    assert seen == [(3, 24, 32)]
    twice = CompressedImageSet(files, [2]).altered(2, darker)
    assert torch.equal(twice, resize_image(round_trip(crop[None])[0] // 2, (24, 32)))


def test_birds_are_compressed_at_their_own_size() -> None:
    splits = open_birds(classes=4, train_per_class=2, test_per_class=1, size=48, cache=False)
    done = compress_splits(splits, compressed_classes(4, "odd"), quality=15)
    assert done.project is done.train
    for before, after in zip(splits, done, strict=True):
        for sample in after:
            image = before[sample.index].image
            if sample.label % 2:
                image = round_trip(image[None], quality=15)[0]
            assert torch.equal(sample.image, image)
        assert after.clean is before
    apart = Splits(splits.train, splits.train.subset([0, 7]), splits.test)
    assert len(compress_splits(apart, [0]).project) == 2


def test_classes_that_are_not_there_are_refused(files: FileImageSet) -> None:
    with pytest.raises(ValueError, match="no class 3: there are 3 classes"):
        CompressedImageSet(files, [0, 3])
    assert not CompressedImageSet(files, []).compressed.any()


def in_memory(count: int, channels: int = 3) -> MemoryImageSet:
    pixels = smooth(count, channels)
    source = ImageSet(
        classes=("a",),
        labels=[0] * count,
        names=[str(k) for k in range(count)],
        channels=channels,
        size=(40, 56),
    )
    return MemoryImageSet(pixels, source=source)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_depends_on_seed_epoch_and_image_alone(channels: int) -> None:
    images = in_memory(23, channels)
    jpeg = JpegAugmentation(probability=0.5)
    altered = Augmentation.paper()

    def seen(
        size: int, world: int = 1, start: int = 0, workers: int = 0, epoch: int = 4
    ) -> dict[int, Tensor]:
        found = {}
        for rank in range(world):
            batches = Batches(
                images if not workers else images.subset(range(23)),
                size,
                order=("shuffle", 1, epoch),
                start=start,
                augment=altered,
                jpeg=jpeg,
                seed=1,
                epoch=epoch,
                rank=rank,
                world=world,
                workers=workers,
            )
            for batch in batches:
                for index, image in zip(batch.index.tolist(), batch.images, strict=True):
                    found[index] = image
        return found

    whole = seen(23)
    assert len(whole) == 23
    for other in (seen(1), seen(4), seen(3, world=3), seen(5, workers=2), seen(4, start=2)):
        assert other
        for index, image in other.items():
            assert torch.equal(image, whole[index])
    assert any(not torch.equal(image, whole[index]) for index, image in seen(23, epoch=5).items())


def test_augmentation_compresses_bytes_and_half_of_the_images() -> None:
    images = in_memory(12)
    batches = Batches(images, 5, jpeg=JpegAugmentation(), seed=3, epoch=1)
    before = images.pixels.clone()
    expected = round_trip(images.pixels)
    hit = []
    for batch in batches:
        for index, image in zip(batch.index.tolist(), batch.images, strict=True):
            compressed = torch.equal(image * 255, expected[index].float())
            hit.append(compressed)
            assert compressed or torch.equal(image * 255, images.pixels[index].float())
    assert 0 < sum(hit) < 12
    assert hit == JpegAugmentation().chosen(torch.arange(12), seed=3, epoch=1).tolist()
    assert torch.equal(images.pixels, before)


def test_how_often_augmentation_hits() -> None:
    index = torch.arange(4000)
    for probability in (0.0, 0.2, 0.5, 1.0):
        hit = JpegAugmentation(probability=probability).chosen(index, seed=0, epoch=0)
        spread = 4 * (probability * (1 - probability) / 4000) ** 0.5
        assert float(hit.float().mean()) == pytest.approx(probability, abs=spread)
    images = smooth(2)
    never = JpegAugmentation(probability=0.0)
    assert torch.equal(never(images, index[:2], seed=0, epoch=0), images)
    empty = never(images[:0], index[:0], seed=0, epoch=0)
    assert empty.shape == (0, 3, 40, 56)
    assert JpegAugmentation()(images[:0], index[:0], seed=0, epoch=0).shape == (0, 3, 40, 56)


def test_wrong_augmentations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probability must be in 0 … 1, got 1\.5"):
        JpegAugmentation(probability=1.5)
    with pytest.raises(ValueError, match="quality must be in 1 … 100"):
        JpegAugmentation(quality=0)
    with pytest.raises(ValueError, match="must be \\[N, channels, S, T\\] and index"):
        JpegAugmentation()(smooth(2), torch.arange(3), seed=0, epoch=0)
