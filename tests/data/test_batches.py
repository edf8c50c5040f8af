import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protofast.data import Augmentation, Batch, Batches, FileImageSet, ImageSet, MemoryImageSet
from protofast.data.image_set import FileEntry
from protofast.errors import DataError


def numbered(count: int, size: tuple[int, int] = (6, 8)) -> MemoryImageSet:
    """Images that all differ."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    labels = [k % 3 for k in range(count)]
    names = [str(k) for k in range(count)]
    source = ImageSet(classes=("a", "b", "c"), labels=labels, names=names, channels=3, size=size)
    return MemoryImageSet(pixels, source=source)


def by_index(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {
        int(i): image
        for batch in batches
        for i, image in zip(batch.index, batch.images, strict=True)
    }


def test_batches_hold_the_images_in_order() -> None:
    images = numbered(7)
    batches = list(Batches(images, 3))
    assert [len(batch.labels) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(7))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.labels)
    together = torch.cat([batch.images for batch in batches])
    assert together.dtype == torch.float32
    assert torch.equal(together, images.pixels.float() / 255)


def test_shuffling_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(numbered(40), 7, order=("shuffle", seed, epoch))
        return torch.cat([batch.index for batch in batches]).tolist()

    assert sorted(order(0, 0)) == list(range(40))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(2**63 + 5, 0) != order(5, 0)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 30),
    size=st.integers(1, 9),
    world=st.integers(1, 4),
    shuffled=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 1000),
)
def test_neither_batch_size_nor_ranks_change_an_image(
    count: int, size: int, world: int, shuffled: bool, seed: int, epoch: int
) -> None:
    images = numbered(count)

    def batches(batch_size: int, rank: int, ranks: int) -> list[Batch]:
        return list(
            Batches(
                images,
                batch_size,
                order=("shuffle", seed, epoch) if shuffled else None,
                augment=Augmentation(
                    rotation=15,
                    skew=0.2,
                    shear=10,
                    distortion=5,
                    flip=0.5,
                    brightness=0.3,
                    contrast=0.3,
                    saturation=0.4,
                ),
                seed=seed,
                epoch=epoch,
                rank=rank,
                world=ranks,
            )
        )

    alone = batches(count, 0, 1)
    shares = [batches(size, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    expected = by_index(alone)
    together = by_index([batch for share in shares for batch in share])
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[index], expected[index]) for index in expected)
    # Batch b of all ranks is batch b of one rank with a larger batch.
    large = batches(size * world, 0, 1)
    for number, batch in enumerate(large):
        parts = [set(share[number].index.tolist()) for share in shares]
        assert set.union(*parts) == set(batch.index.tolist())


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 25), size=st.integers(1, 6), start=st.integers(0, 30))
def test_resuming_in_the_middle_of_an_epoch(count: int, size: int, start: int) -> None:
    def batches(first: int) -> Batches:
        return Batches(
            numbered(count),
            size,
            order=("shuffle", 3, 1),
            start=first,
            augment=Augmentation.paper(),
            seed=3,
            epoch=1,
        )

    whole, rest = list(batches(0)), list(batches(start))
    assert len(rest) == len(batches(start)) == max(0, len(whole) - start)
    for ours, theirs in zip(rest, whole[start:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_dropping_the_last_batch() -> None:
    assert [len(batch.index) for batch in Batches(numbered(7), 3, drop_last=True)] == [3, 3]
    shares = [
        list(Batches(numbered(7), 2, rank=rank, world=2, drop_last=True)) for rank in range(2)
    ]
    assert [[len(batch.index) for batch in share] for share in shares] == [[2], [2]]


def test_a_share_can_be_empty() -> None:
    batch = list(Batches(numbered(5), 2, rank=1, world=2))[-1]
    assert batch.images.shape == (0, 3, 6, 8)
    assert batch.labels.shape == batch.index.shape == (0,)


@pytest.fixture
def files(tmp_path: Path, write_picture: Callable[..., Path]) -> FileImageSet:
    entries = [
        FileEntry(write_picture(tmp_path / f"{k}.jpg", k), f"{k}.jpg", k % 2) for k in range(20)
    ]
    return FileImageSet(entries, classes=("a", "b"), size=(10, 12))


def decoding_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("protofast-decode")]


@pytest.mark.parametrize("workers", [1, 3])
def test_decoding_ahead_changes_nothing(files: FileImageSet, workers: int) -> None:
    alone = list(Batches(files, 6, order=("shuffle", 0, 0)))
    ahead = list(Batches(files, 6, order=("shuffle", 0, 0), workers=workers))
    memory = list(Batches(files.cached(), 6, order=("shuffle", 0, 0)))
    for a, b, c in zip(alone, ahead, memory, strict=True):
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(a, b, c, strict=True))
    assert not decoding_threads()


def test_leaving_early_ends_the_threads(files: FileImageSet) -> None:
    for _ in Batches(files, 2, workers=2):
        assert decoding_threads()
        break
    gc.collect()
    assert not decoding_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_ends_the_threads(files: FileImageSet, workers: int) -> None:
    files.entries[13].path.write_bytes(b"\xff\xd8\xff no more")
    read = []
    with pytest.raises(DataError, match=r"13\.jpg"):
        read.extend(Batches(files, 4, workers=workers))
    assert not decoding_threads()
    with pytest.raises(DataError, match=r"13\.jpg"):
        files.cached()


def test_only_few_images_are_decoded_ahead(files: FileImageSet) -> None:
    decoded = []

    class Counting(FileImageSet):
        def image(self, index: int) -> torch.Tensor:
            decoded.append(index)
            return super().image(index)

    counting = Counting(files.entries, classes=files.classes, size=files.size)
    iterator = iter(Batches(counting, 2, workers=1))
    next(iterator)
    assert len(decoded) <= 6
    iterator.close()  # type: ignore[attr-defined]


def test_images_of_different_sizes_go_one_by_one(files: FileImageSet) -> None:
    own_size = FileImageSet(files.entries, classes=files.classes, size=None)
    assert next(iter(Batches(own_size, 1))).images.shape == (1, 3, 24, 32)
    with pytest.raises(ValueError, match="batch_size=1"):
        Batches(own_size, 2)
    with pytest.raises(ValueError, match="give a size"):
        own_size.cached()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world": 2}, "rank must be"),
        ({"start": -1}, "must not be negative"),
        ({"order": "shuffle"}, "order must be None or"),
    ],
)
def test_misuse_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(numbered(3), **{"batch_size": 1, **options})  # type: ignore[arg-type]


def test_batches_on_a_device() -> None:
    batch = next(iter(Batches(numbered(4), 2, device="cpu", augment=Augmentation.paper())))
    assert batch.images.device == batch.labels.device == batch.index.device == torch.device("cpu")
