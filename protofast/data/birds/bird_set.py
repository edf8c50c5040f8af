"""The embedded data set: birds that are rendered, not downloaded."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from protofast.data.birds import cache as bird_cache
from protofast.data.birds.anatomy import PARTS
from protofast.data.birds.render import render
from protofast.data.birds.species import MAX_CLASSES, Species, choose_species, name_species
from protofast.data.image_set import ImageSet, MemoryImageSet, Progress, Splits

MAX_SIZE = 1024  # pixels
_FIRST_TEST = (
    1_000_000  # number of a class's first test image, so that more training images change none
)


class BirdTruth(NamedTuple):
    """What is where in a rendered bird."""

    parts: Tensor  # [13, 3] float32: x, y in pixels and 1 if any of the part is visible, else 0
    mask: Tensor  # [S, T] uint8: 0 = not the bird, k = part PARTS[k - 1]
    box: Tensor  # [4] float32: x0, y0, x1, y1 around what is visible


class BirdSet(MemoryImageSet):
    """Rendered birds, in memory, with ground truth.

    Attributes:
        species: One dictionary gene -> value per class.
        parts: [n, 13, 3] float32, see :class:`BirdTruth`; the order of parts is that of ``PARTS``.
        boxes: [n, 4] float32 (x0, y0, x1, y1) around what is visible of the bird, ends exclusive.
    """

    def __init__(
        self,
        pixels: Tensor,
        *,
        parts: Tensor,
        boxes: Tensor,
        species: Sequence[Species],
        seed: int,
        numbers: Sequence[tuple[int, int]],
    ) -> None:
        classes = name_species(list(species))
        super().__init__(
            pixels,
            source=ImageSet(
                classes=classes,
                labels=[label for label, _ in numbers],
                names=[f"{classes[label]}/{_split_name(number)}" for label, number in numbers],
                channels=3,
                size=(int(pixels.shape[2]), int(pixels.shape[3])),
                boxes=boxes,
                description=f"rendered birds, seed {seed}",
            ),
        )
        self.species = list(species)
        self.parts = parts
        self.seed = seed
        self._numbers = list(numbers)

    def truth(self, index: int) -> BirdTruth:
        """The ground truth of an image; its mask is rendered now."""
        label, number = self._numbers[index]
        assert self.size is not None
        assert self.boxes is not None
        mask = render(self.species[label], (self.seed, label, number), self.size).parts
        return BirdTruth(self.parts[index], torch.from_numpy(mask), self.boxes[index])

    def subset(self, indices: Sequence[int] | Tensor) -> BirdSet:
        """See :meth:`ImageSet.subset`; the ground truth comes along."""
        assert self.boxes is not None
        chosen = torch.arange(len(self))[torch.as_tensor(indices, dtype=torch.int64)]
        return BirdSet(
            self.pixels[chosen],
            parts=self.parts[chosen],
            boxes=self.boxes[chosen],
            species=self.species,
            seed=self.seed,
            numbers=[self._numbers[position] for position in chosen.tolist()],
        )


def open_birds(
    *,
    classes: int = 10,
    train_per_class: int = 60,
    test_per_class: int = 20,
    size: tuple[int, int] | int = 112,
    seed: int = 0,
    cache: str | Path | bool | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Splits:
    """Renders a data set of birds, or takes it from the cache.

    Every image follows from (seed, classes, size, class, number of the image) alone, whatever the
    number of threads. Training and test images of a class differ in their numbers only.

    Args:
        classes: Number of species, 2 to 500.
        train_per_class: Training images per species.
        test_per_class: Test images per species.
        size: (S, T), or one number for squares; 16 to 1024 pixels.
        seed: Which world of species and images.
        cache: The folder for rendered images; None for the user's cache folder (or the one that the
            environment variable PROTOFAST_CACHE names), False for none.
        threads: Rendering threads; None for one per processor, at most four.
        progress: Called with (images done, images in all) while rendering.
    """
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if not all(16 <= side <= MAX_SIZE for side in shape):
        raise ValueError(f"size must be 16 … {MAX_SIZE} pixels in both directions, got {shape}")
    if not 2 <= classes <= MAX_CLASSES:
        raise ValueError(f"classes must be in 2 … {MAX_CLASSES}, got {classes}")
    if not (1 <= train_per_class <= _FIRST_TEST and 1 <= test_per_class <= _FIRST_TEST):
        raise ValueError(
            f"train_per_class and test_per_class must be in 1 … {_FIRST_TEST}, "
            f"got {train_per_class} and {test_per_class}"
        )
    species = choose_species(classes, seed)
    train = [(label, k) for label in range(classes) for k in range(train_per_class)]
    test = [(label, _FIRST_TEST + k) for label in range(classes) for k in range(test_per_class)]
    key = (
        f"drawing {_drawing()}, Pillow {PIL.__version__}, seed {seed}, classes {classes}, "
        f"train {train_per_class}, test {test_per_class}, size {shape[0]}x{shape[1]}"
    )
    arrays = None
    file = None
    folder = Path(cache) if isinstance(cache, str | Path) else None
    if cache is None or cache is True:
        folder = bird_cache.default_folder()
    if folder is not None:
        images = f"{classes}x{train_per_class}+{test_per_class}"
        file = folder / f"birds-{seed}-{images}-{shape[0]}x{shape[1]}.bin"
        arrays = bird_cache.load(file, key)
    if arrays is None:
        arrays = _render_all(species, seed, train + test, shape, threads, progress)
        if file is not None:
            bird_cache.save(file, key, arrays)

    def side(first: int, numbers: list[tuple[int, int]]) -> BirdSet:
        last = first + len(numbers)
        return BirdSet(
            torch.from_numpy(arrays["pixels"][first:last]),
            parts=torch.from_numpy(arrays["parts"][first:last]),
            boxes=torch.from_numpy(arrays["boxes"][first:last]),
            species=species,
            seed=seed,
            numbers=numbers,
        )

    training = side(0, train)
    return Splits(training, training, side(len(train), test))


def _drawing() -> str:
    """A fingerprint of the code that draws, so that pictures of another version are not reused."""
    checksum = 0
    for file in sorted(Path(__file__).parent.glob("*.py")):
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return f"{checksum:08x}"


def _split_name(number: int) -> str:
    return f"test-{number - _FIRST_TEST:04d}" if number >= _FIRST_TEST else f"train-{number:04d}"


def _render_all(
    species: list[Species],
    seed: int,
    numbers: list[tuple[int, int]],
    size: tuple[int, int],
    threads: int | None,
    progress: Progress | None,
) -> bird_cache.Arrays:
    count = len(numbers)
    pixels = np.empty((count, 3, *size), dtype=np.uint8)
    parts = np.empty((count, len(PARTS), 3), dtype=np.float32)
    boxes = np.empty((count, 4), dtype=np.float32)

    def one(position: int) -> None:
        label, number = numbers[position]
        picture, mask = render(species[label], (seed, label, number), size)
        pixels[position] = picture.transpose(2, 0, 1)
        parts[position] = _part_places(mask)
        boxes[position] = _box(mask)

    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(one, range(count)), start=1):
            if progress is not None:
                progress(done, count)
    return {"pixels": pixels, "parts": parts, "boxes": boxes}


def _part_places(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """For each part its visible pixel nearest to its centre as (x, y, 1), or (0, 0, 0)."""
    places = np.zeros((len(PARTS), 3), dtype=np.float32)
    rows, columns = np.nonzero(mask)
    found = mask[rows, columns]
    for part in range(1, len(PARTS) + 1):
        at = found == part
        if at.any():
            y, x = rows[at], columns[at]
            nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
            places[part - 1] = x[nearest] + 0.5, y[nearest] + 0.5, 1.0
    return places


def _box(mask: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
