"""JPEG's traces in images: some classes compressed, or training images now and then.

Hoffmann et al. 2021 (section 4) compress the images of half of the classes at quality 20 and find
prototypes that look for the artefacts; appendix F.2 compresses every second training image, of any
class, and the effect is gone. Both are a round trip through JPEG with 4:2:0 chroma, Pillow's
default and so theirs.

Two codecs: simplejpeg (libjpeg-turbo), the faster one, and Pillow, which the papers' scripts use.
Both write the same tables and read the same file alike to the last bit, but they round differently
when they write.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from protofast.data.decode import Pixels
from protofast.data.image_set import Change, ImageSet, Splits
from protofast.data.randomness import permutation, uniform

Codec = Literal["simplejpeg", "pillow"]
Choice = Literal["none", "half", "odd"]
Place = Literal["file", "input"]
_CLASSES, _AUGMENTATION = 10, 11  # purposes of these random numbers; see randomness.py
_SIDE = 65_535  # JPEG's largest, in pixels
_TOGETHER = 4  # images that a thread takes at once


def round_trip(
    images: Tensor, *, quality: int = 20, codec: Codec = "simplejpeg", threads: int | None = None
) -> Tensor:
    """Images as they come back from JPEG files: what the artefacts do to them and nothing else.

    Each image is compressed for itself, so the result depends neither on the batch nor on
    ``threads``.

    Args:
        images: [N, channels, S, T] uint8 on the CPU, 1 (grey) or 3 (RGB) channels.
        quality: JPEG's, 1 to 100.
        codec: ``simplejpeg`` or ``pillow``; see above.
        threads: How many images are compressed at once; None for PyTorch's number.

    Returns:
        [N, channels, S, T] uint8.

    Raises:
        ValueError: Another shape, quality or codec.
        TypeError: Another dtype.
    """
    _check(images, quality, codec)
    count = len(images)
    changed = torch.empty(images.shape, dtype=torch.uint8)
    if count == 0:
        return changed
    through = partial(_through_file, quality=quality, codec=codec)
    workers = min(torch.get_num_threads() if threads is None else max(1, threads), count)
    together = min(_TOGETHER, -(-count // workers))
    batches = list(zip(images.split(together), changed.split(together), strict=True))
    shares = [batches[worker::workers] for worker in range(workers)]
    if workers == 1:
        _compress(shares[0], through)
        return changed
    with ThreadPoolExecutor(workers - 1, thread_name_prefix="protofast-jpeg") as pool:
        others = [pool.submit(_compress, share, through) for share in shares[1:]]
        _compress(shares[0], through)
        for other in others:
            other.result()
    return changed


def compressed_classes(count: int, which: Choice, seed: int = 0) -> tuple[int, ...]:
    """Which of ``count`` classes are compressed, in ascending order.

    Args:
        count: Number of classes.
        which: ``half``: count // 2 classes drawn at random (the paper's 100 of 200); ``odd``: those
            with an odd number, counted from 0 (the paper's released code); ``none``.
        seed: Key of the drawing.
    """
    if which not in get_args(Choice):
        raise ValueError(f"which must be one of {', '.join(get_args(Choice))}, got {which!r}")
    if which == "none":
        return ()
    if which == "odd":
        return tuple(range(1, count, 2))
    return tuple(sorted(permutation(count, _CLASSES, seed)[: count // 2].tolist()))


class CompressedImageSet(ImageSet):
    """Another ImageSet with the images of some classes compressed to JPEG.

    As in the released code, files are compressed as they are after cropping, before they are
    resized (:meth:`ImageSet.altered`); images without files at the size that they have. Resizing
    may average artefacts away where files are much larger than what the network sees: with
    ``at="input"`` images are compressed afterwards, at ``source.size``. Training images are
    augmented afterwards; the released code reads files that were augmented before.

    Args:
        source: The images; :attr:`clean` hands them out again.
        classes: Positions in ``source.classes`` of those that are compressed.
        quality: See :func:`round_trip`.
        codec: See :func:`round_trip`.
        at: ``file`` or ``input``; see above.

    Attributes:
        compressed: bool [n], whether an image is of one of the classes.
    """

    def __init__(
        self,
        source: ImageSet,
        classes: Sequence[int],
        *,
        quality: int = 20,
        codec: Codec = "simplejpeg",
        at: Place = "file",
    ) -> None:
        if at not in get_args(Place):
            raise ValueError(f"at must be one of {', '.join(get_args(Place))}, got {at!r}")
        strange = [label for label in classes if not 0 <= label < len(source.classes)]
        if strange:
            raise ValueError(f"no class {strange[0]}: there are {len(source.classes)} classes")
        self.change = compression(quality=quality, codec=codec)
        super().__init__(
            classes=source.classes,
            labels=source.labels,
            names=source.names,
            channels=source.channels,
            size=source.size,
            boxes=source.boxes,
            groups=source.groups,
            description=f"{source.description}; {len(set(classes))} of {len(source.classes)} "
            f"classes compressed to JPEG (quality {quality}, {codec}"
            f"{', after resizing' if at == 'input' else ''})",
        )
        self.at = at
        self.compressed = torch.isin(self.labels, torch.tensor(list(classes), dtype=torch.int64))
        self._source = source

    @property
    def clean(self) -> ImageSet:
        """See :attr:`ImageSet.clean`."""
        return self._source.clean

    def image(self, index: int) -> Tensor:
        """See :meth:`ImageSet.image`."""
        if not self.compressed[index]:
            return self._source.image(index)
        return changed_image(self._source, index, self.change, at=self.at)

    def altered(self, index: int, change: Change) -> Tensor:
        """See :meth:`ImageSet.altered`; compression at the file's size comes first."""
        if not self.compressed[index]:
            return self._source.altered(index, change)
        if self.at == "input":
            return self.change(self._source.altered(index, change))
        return self._source.altered(index, lambda image: change(self.change(image)))

    def file(self, index: int) -> Path | None:
        """See :meth:`ImageSet.file`."""
        return self._source.file(index)


def compression(*, quality: int = 20, codec: Codec = "simplejpeg") -> Change:
    """:func:`round_trip` for one image [channels, S, T], for :meth:`ImageSet.altered`."""
    _check(torch.empty((0, 3, 1, 1), dtype=torch.uint8), quality, codec)

    def change(image: Tensor) -> Tensor:
        return round_trip(image[None], quality=quality, codec=codec, threads=1)[0]

    return change


def changed_image(images: ImageSet, index: int, change: Change, *, at: Place) -> Tensor:
    """An image with a change made to it before it is resized (``file``) or after (``input``)."""
    return images.altered(index, change) if at == "file" else change(images.image(index))


def compress_splits(
    splits: Splits,
    classes: Sequence[int],
    *,
    quality: int = 20,
    codec: Codec = "simplejpeg",
    at: Place = "file",
) -> Splits:
    """A data set with the same classes compressed in its training, projection and test images."""

    def wrapped(images: ImageSet) -> ImageSet:
        return CompressedImageSet(images, classes, quality=quality, codec=codec, at=at)

    train = wrapped(splits.train)
    project = train if splits.project is splits.train else wrapped(splits.project)
    return Splits(train, project, wrapped(splits.test))


@dataclass(frozen=True, kw_only=True)
class JpegAugmentation:
    """Training images compressed at random, whatever their class (Hoffmann et al., F.2).

    The original compresses each image as it is in its file, before resizing, and its files are
    altered copies, rotated and so on beforehand. Here it is the image at the size that the network
    sees, before :class:`Augmentation` moves its pixels: so images that are kept in memory need not
    be decoded again, and bytes are compressed where they are. Blocks of 8 pixels are larger on the
    bird than the original's where files are larger than ``data.size``, and turn with it.

    Which images are compressed is a hash of (seed, epoch, image index), so it depends neither on
    batch, rank or worker, nor on where a run was resumed.

    Attributes:
        probability: That an image is compressed, in [0, 1].
        quality: See :func:`round_trip`.
        codec: See :func:`round_trip`.
    """

    probability: float = 0.5
    quality: int = 20
    codec: Codec = "simplejpeg"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in 0 … 1, got {self.probability!r}")
        _check(torch.empty((0, 3, 1, 1), dtype=torch.uint8), self.quality, self.codec)

    def chosen(self, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Which of the images ``index`` [N] (positions in their data set) it hits: bool [N]."""
        random = uniform(1, _AUGMENTATION, seed, epoch, index.cpu().numpy())[:, 0]
        return torch.from_numpy(random < self.probability)

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Compresses some images of a batch.

        Args:
            images: [N, channels, S, T] uint8 on the CPU; not changed.
            index: [N] int64, each image's position in its data set.
            seed: Key of the random numbers.
            epoch: Key of the random numbers.

        Returns:
            [N, channels, S, T] uint8.
        """
        if images.ndim != 4 or len(images) != len(index):
            raise ValueError(
                "images must be [N, channels, S, T] and index [N], "
                f"got {list(images.shape)} and {list(index.shape)}"
            )
        chosen = self.chosen(index, seed=seed, epoch=epoch)
        if not chosen.any():
            return images
        changed = images.clone()
        changed[chosen] = round_trip(images[chosen], quality=self.quality, codec=self.codec)
        return changed


def _check(images: Tensor, quality: int, codec: str) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be [N, channels, S, T] with 1 or 3 channels, got {list(images.shape)}"
        )
    if not all(1 <= side <= _SIDE for side in images.shape[2:]):
        raise ValueError(f"JPEG holds images of 1 to {_SIDE} pixels, got {list(images.shape[2:])}")
    if images.device.type != "cpu":
        raise ValueError(f"images must be on the CPU, got {images.device}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in 1 … 100, got {quality!r}")
    if codec not in get_args(Codec):
        raise ValueError(f"codec must be one of {', '.join(get_args(Codec))}, got {codec!r}")


def _compress(
    batches: Sequence[tuple[Tensor, Tensor]], through: Callable[[Pixels, Pixels], None]
) -> None:
    """Fills the second of each two batches [n, channels, S, T]; none is larger than the first."""
    if not batches:
        return
    # NumPy copies and the codecs let other threads run; PyTorch would start threads of its own.
    # Channel by channel, because a transposing copy takes four times as long. Memory is taken once,
    # and several images are copied at once, because threads wait for each other's fresh pages and
    # after each call for Python's lock.
    together, channels, height, width = batches[0][0].shape
    pixels = np.empty((together, height, width, channels), dtype=np.uint8)
    read = np.empty((together, height, width, 1 if channels == 1 else 4), dtype=np.uint8)
    for images, changed in batches:
        count = len(images)
        for channel, planes in enumerate(images.numpy().swapaxes(0, 1)):
            pixels[:count, :, :, channel] = planes
        for position in range(count):
            through(pixels[position], read[position])
        filled = changed.numpy()
        if channels == 1:
            filled[:, 0] = read[:count, :, :, 0]
            continue
        # Four bytes a pixel are read and taken apart in half the time of three.
        words = read[:count].view("<u4")[:, :, :, 0]
        for channel in range(channels):
            if channel > 0:
                np.right_shift(words, 8, out=words)
            np.copyto(filled[:, channel], words, casting="unsafe")  # each number's lowest byte


def _through_file(pixels: Pixels, read: Pixels, *, quality: int, codec: Codec) -> None:
    """An image [S, T, channels] as a JPEG file in memory gives it back.

    Args:
        pixels: Contiguous.
        read: Filled: [S, T, 1] if grey, else [S, T, 4], whose last channel means nothing.
        quality: See :func:`round_trip`.
        codec: See :func:`round_trip`.
    """
    grey = pixels.shape[2] == 1
    if codec == "simplejpeg":
        data = simplejpeg.encode_jpeg(
            pixels,
            quality=quality,
            colorspace="GRAY" if grey else "RGB",
            colorsubsampling="Gray" if grey else "420",
        )
        simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGBX", buffer=read)
        return
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        read[:, :, : pixels.shape[2]] = np.asarray(image).reshape(pixels.shape)
