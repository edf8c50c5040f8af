from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protofast.data import FileImageSet, ImageSet, MemoryImageSet, decode_image
from protofast.data.image_set import FileEntry


@pytest.fixture
def files(tmp_path: Path, write_picture: Callable[..., Path]) -> FileImageSet:
    entries = [
        FileEntry(
            write_picture(tmp_path / f"{k}.png", k), f"{k}.png", k % 2, (0, 0, 20, 16), f"p{k // 2}"
        )
        for k in range(6)
    ]
    return FileImageSet(entries, classes=("a", "b"), size=(12, 10), description="six pictures")


def test_samples(files: FileImageSet) -> None:
    assert len(files) == 6
    sample = files[4]
    assert (sample.label, sample.index) == (0, 4)
    assert sample.image.shape == (3, 12, 10)
    assert sample.image.dtype == torch.uint8
    assert files[-1].index == 5
    with pytest.raises(IndexError, match="image 6 of 6"):
        files[6]
    assert [sample.index for sample in map(files.__getitem__, range(6))] == list(range(6))


def test_cached_images_are_the_same(files: FileImageSet) -> None:
    told = []
    memory = files.cached(threads=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(k, 6) for k in range(1, 7)]
    assert isinstance(memory, MemoryImageSet)
    assert memory.cached() is memory
    for index in range(6):
        assert torch.equal(memory[index].image, files[index].image)
        assert memory.file(index) == files.file(index)
    for name in ("classes", "names", "groups", "channels", "size", "description"):
        assert getattr(memory, name) == getattr(files, name)
    assert torch.equal(memory.labels, files.labels)


@pytest.mark.parametrize("in_memory", [False, True])
def test_subsets(files: FileImageSet, in_memory: bool) -> None:
    whole = files.cached() if in_memory else files
    some = whole.subset([5, 0, -2])
    assert some.names == ["5.png", "0.png", "4.png"]
    assert some.labels.tolist() == [1, 0, 0]
    assert some.groups == ["p2", "p0", "p2"]
    assert some.description == "six pictures"
    assert some[0].index == 0
    for ours, theirs in ((0, 5), (1, 0), (2, 4)):
        assert torch.equal(some[ours].image, whole[theirs].image)
        assert some.file(ours) == whole.file(theirs)
    again = some.subset(torch.tensor([2, 1]))
    assert again.names == ["4.png", "0.png"]
    assert torch.equal(again.cached()[0].image, files[4].image)
    with pytest.raises(IndexError):
        whole.subset([6])


def test_original_size(files: FileImageSet) -> None:
    own = FileImageSet(files.entries, classes=files.classes, size=None, channels=1)
    assert own[0].image.shape == (1, 16, 20)
    assert torch.equal(own[0].image, decode_image(files.entries[0].path, 1)[:, :16, :20])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 names but 1 labels"):
        ImageSet(classes=("a",), labels=[0], names=["x", "y"], channels=3, size=None)
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        ImageSet(classes=("a",), labels=[0], names=["x"], channels=4, size=None)
    source = ImageSet(classes=("a",), labels=[0], names=["x"], channels=3, size=None)
    with pytest.raises(ValueError, match="2 images but 1 names"):
        MemoryImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), source=source)
