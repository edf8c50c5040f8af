"""Images with labels: the one interface that training, projection, explanation and the audits read.

An :class:`ImageSet` hands out ``uint8`` images [channels, S, T] that are already decoded, cropped
and resized. What differs between data sets is only where the pixels come from, so a subclass writes
one method, :meth:`ImageSet.image`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from protofast.data.decode import Resize, decode_image, resize_image
from protofast.errors import DataError

Progress = Callable[[int, int], None]  # called with (images done, images in all)
Change = Callable[[Tensor], Tensor]  # of one image [channels, S', T'] uint8, of the same shape
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the original image


class Sample(NamedTuple):
    """One image of an :class:`ImageSet`."""

    image: Tensor  # [channels, S, T] uint8
    label: int
    index: int  # type: ignore[assignment]  # position in its ImageSet


class ImageSet(Dataset[Sample]):
    """Labelled images, addressed by position.

    Attributes:
        classes: Class names; ``labels`` are positions in it.
        labels: [n] int64.
        names: One stable name per image (a relative path or an identifier); reports use it as the
            image's identity.
        channels: 1 or 3.
        size: (S, T) of every image, or None if each keeps its own.
        boxes: [n, 4] float32 boxes (x0, y0, x1, y1) of the object, in pixels of the image handed
            out, or None.
        groups: One group (say, a patient) per image, or None. No group may be on both sides of a
            split.
        description: One line on where the images come from and how they were split.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        labels: Sequence[int] | Tensor,
        names: Sequence[str],
        channels: int,
        size: tuple[int, int] | None,
        boxes: Tensor | None = None,
        groups: Sequence[str] | None = None,
        description: str = "",
    ) -> None:
        self.classes = tuple(classes)
        self.labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        self.names = list(names)
        self.channels = channels
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.boxes = boxes
        self.groups = None if groups is None else list(groups)
        self.description = description
        if len(self.names) != len(self.labels):
            raise ValueError(f"{len(self.names)} names but {len(self.labels)} labels")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Tensor:
        """The image at ``index``: [channels, S, T] uint8. Safe to call from several threads."""
        raise NotImplementedError

    def altered(self, index: int, change: Change) -> Tensor:
        """The image at ``index`` with a change made to it before it is resized.

        Images that come from files are decoded and cropped anew for it; those that do not, or that
        were put into memory by hand, are changed as they are.
        """
        return change(self.image(index))

    def file(self, index: int) -> Path | None:
        """The file that the image comes from, or None if it has none."""
        return None

    @property
    def clean(self) -> ImageSet:
        """The same images before anything was done to them on purpose; mostly this set itself."""
        return self

    def __getitem__(self, index: int) -> Sample:
        position = _position(index, len(self))
        return Sample(self.image(position), int(self.labels[position]), position)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at ``indices``, in that order, as an ImageSet with positions of its own."""
        return _Subset(self, _positions(indices, len(self)))

    def cached(self, *, threads: int = 2, progress: Progress | None = None) -> ImageSet:
        """The same images with their pixels in memory; needs a fixed ``size``.

        Args:
            threads: How many images are decoded at once.
            progress: Called with (images done, images in all) after each image, in this thread.

        Raises:
            DataError: An image cannot be read; the message names its file.
        """
        if self.size is None:
            raise ValueError(
                "only images of one size can be kept in memory; give a size when opening the data"
            )
        pixels = torch.empty((len(self), self.channels, *self.size), dtype=torch.uint8)

        def fill(position: int) -> None:
            pixels[position] = self.image(position)

        with ThreadPoolExecutor(max(1, threads)) as pool:
            futures = [pool.submit(fill, position) for position in range(len(self))]
            try:
                for done, future in enumerate(futures, start=1):
                    future.result()
                    if progress is not None:
                        progress(done, len(self))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return MemoryImageSet(pixels, source=self, same_pixels=True)


class MemoryImageSet(ImageSet):
    """Images whose pixels are in memory.

    Args:
        pixels: [n, channels, S, T] uint8.
        source: Where classes, labels, names, boxes, groups and files come from.
        same_pixels: Whether the pixels come from there too, so that :meth:`altered` can change them
            before they are resized.
    """

    def __init__(self, pixels: Tensor, *, source: ImageSet, same_pixels: bool = False) -> None:
        super().__init__(
            classes=source.classes,
            labels=source.labels,
            names=source.names,
            channels=pixels.shape[1],
            size=(pixels.shape[2], pixels.shape[3]),
            boxes=source.boxes,
            groups=source.groups,
            description=source.description,
        )
        if len(pixels) != len(self):
            raise ValueError(f"{len(pixels)} images but {len(self)} names")
        self.pixels = pixels
        self._source = source
        self._same_pixels = same_pixels

    def image(self, index: int) -> Tensor:
        """See :meth:`ImageSet.image`."""
        return self.pixels[index]

    def altered(self, index: int, change: Change) -> Tensor:
        """See :meth:`ImageSet.altered`."""
        if self._same_pixels:
            return self._source.altered(index, change)
        return change(self.pixels[index])

    def file(self, index: int) -> Path | None:
        """See :meth:`ImageSet.file`."""
        return self._source.file(index)

    @property
    def clean(self) -> ImageSet:
        """See :attr:`ImageSet.clean`; images that were changed are read again."""
        clean = self._source.clean
        return self if clean is self._source or not self._same_pixels else clean

    def cached(self, *, threads: int = 2, progress: Progress | None = None) -> ImageSet:
        """This set itself; its pixels are in memory already."""
        return self


@dataclass(frozen=True)
class FileEntry:
    """One image file of a data set."""

    path: Path
    name: str
    label: int
    box: Box | None = None  # crop to it, in pixels of the file's image
    group: str | None = None


class FileImageSet(ImageSet):
    """Images in files, decoded when they are asked for.

    Args:
        entries: The files.
        classes: Class names.
        size: (S, T) that every image is resized to; None keeps each image's own size.
        channels: 1 or 3.
        resize: See :func:`protofast.data.decode.resize_image`.
    """

    def __init__(
        self,
        entries: Sequence[FileEntry],
        *,
        classes: Sequence[str],
        size: tuple[int, int] | None,
        channels: int = 3,
        resize: Resize = "stretch",
        description: str = "",
    ) -> None:
        has_groups = bool(entries) and all(entry.group is not None for entry in entries)
        super().__init__(
            classes=classes,
            labels=[entry.label for entry in entries],
            names=[entry.name for entry in entries],
            channels=channels,
            size=size,
            groups=[str(entry.group) for entry in entries] if has_groups else None,
            description=description,
        )
        self.entries = list(entries)
        self.resize: Resize = resize

    def image(self, index: int) -> Tensor:
        """See :meth:`ImageSet.image`."""
        return self._resized(self._cropped(index))

    def altered(self, index: int, change: Change) -> Tensor:
        """See :meth:`ImageSet.altered`."""
        return self._resized(change(self._cropped(index)))

    def _cropped(self, index: int) -> Tensor:
        entry = self.entries[index]
        pixels = decode_image(entry.path, self.channels)
        return pixels if entry.box is None else _crop(pixels, entry)

    def _resized(self, pixels: Tensor) -> Tensor:
        return pixels if self.size is None else resize_image(pixels, self.size, resize=self.resize)

    def file(self, index: int) -> Path | None:
        """See :meth:`ImageSet.file`."""
        return self.entries[index].path

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """See :meth:`ImageSet.subset`."""
        return FileImageSet(
            [self.entries[position] for position in _positions(indices, len(self))],
            classes=self.classes,
            size=self.size,
            channels=self.channels,
            resize=self.resize,
            description=self.description,
        )


class _Subset(ImageSet):
    """Some images of another ImageSet, in another order."""

    def __init__(self, source: ImageSet, positions: list[int]) -> None:
        super().__init__(
            classes=source.classes,
            labels=source.labels[positions],
            names=[source.names[position] for position in positions],
            channels=source.channels,
            size=source.size,
            boxes=None if source.boxes is None else source.boxes[positions],
            groups=None if source.groups is None else [source.groups[p] for p in positions],
            description=source.description,
        )
        self._source = source
        self._positions = positions

    def image(self, index: int) -> Tensor:
        return self._source.image(self._positions[index])

    def altered(self, index: int, change: Change) -> Tensor:
        return self._source.altered(self._positions[index], change)

    def file(self, index: int) -> Path | None:
        return self._source.file(self._positions[index])

    @property
    def clean(self) -> ImageSet:
        clean = self._source.clean
        return self if clean is self._source else clean.subset(self._positions)


class Splits(NamedTuple):
    """A data set as training uses it; ``project`` holds the training images, to project on."""

    train: ImageSet
    project: ImageSet
    test: ImageSet


def square(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """(S, T) from (S, T) or one number."""
    return (size, size) if isinstance(size, int) else size


def _position(index: int, length: int) -> int:
    position = int(index)
    if position < 0:
        position += length
    if not 0 <= position < length:
        raise IndexError(f"image {index} of {length}")
    return position


def _positions(indices: Sequence[int] | Tensor, length: int) -> list[int]:
    values = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    return [_position(value, length) for value in values]


def _crop(pixels: Tensor, entry: FileEntry) -> Tensor:
    """Cuts the entry's box out, corners truncated to whole pixels as the papers' scripts do."""
    assert entry.box is not None
    height, width = pixels.shape[1:]
    x0, y0, x1, y1 = (int(value) for value in entry.box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        raise DataError(
            f"{entry.path}: its bounding box {entry.box} (x0, y0, x1, y1) has no pixel inside the "
            f"image of {width} by {height} pixels; correct it, or open the data uncropped"
        )
    return pixels[:, y0:y1, x0:x1]
