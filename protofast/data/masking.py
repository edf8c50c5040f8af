"""Masking: rectangles painted over training images (Sacha et al. 2024, 2308.08162).

A network that has seen parts of its images covered relies less on what lies far from the part that
a prototype shows. Half of the images get one to five rectangles, each between an eighth and half of
the image high and, independently, wide (28 to 111 of 224 pixels), anywhere they fit. Each is filled
in one of three ways, equally likely:

- ``mean``: the mean colour, which is zero after normalisation;
- ``noise``: the mean plus noise;
- ``noisy``: what was there, plus noise.

The noise is uniform in [0, 1) after normalisation, so uniform in [0, std) here, where images lie in
[0, 1]; it is never negative, hence mostly bright, as the authors have it. It is drawn once for an
image, and later rectangles lie over earlier ones. What exceeds 1 is cut off, as these images may be
perturbed within their bounds afterwards (the authors leave it).

This is what the authors intend. Their released code indexes [N, channels, S, T] as if channels came
last, so that a rectangle's rows select channels: of 20,000 simulated images, 10,071 were chosen and
585 changed at all, mostly in stripes as wide as the image.

Every random number is a hash of (seed, epoch, image index), as in augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protofast.data.randomness import uniform, uniform_at

_MASKING, _NOISE = 20, 21  # purposes of these random numbers; see randomness.py
_EACH = 5  # random numbers per rectangle: height, width, top, left, fill
FILLS = ("mean", "noise", "noisy")


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What may be painted over a training image; the defaults are the authors' intention.

    Attributes:
        mean: Of each channel, as the network normalises by; in [0, 1].
        std: Likewise, positive.
        probability: Of an image to be painted on.
        rectangles: Least and largest number of rectangles.
        size: Least (included) and largest (excluded) height and width, as shares of the image's.
        fills: Which of ``mean``, ``noise`` and ``noisy`` occur, each equally likely.

    Raises:
        ValueError: The message begins with the attribute that is wrong.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    probability: float = 0.5
    rectangles: tuple[int, int] = (1, 5)
    size: tuple[float, float] = (0.125, 0.5)
    fills: tuple[str, ...] = FILLS

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean and std must have a number per channel, got {self.mean} and {self.std}"
            )
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in 0 … 1, got {self.probability!r}")
        least, most = self.rectangles
        if not 1 <= least <= most <= 100:
            raise ValueError(
                "rectangles must be the least and the largest number, from 1 to 100, "
                f"got {self.rectangles!r}"
            )
        smallest, largest = self.size
        if not 0 < smallest <= largest <= 1:
            raise ValueError(
                "size must be the least and the largest share of the image's height and width, "
                f"above 0 and up to 1, got {self.size!r}"
            )
        if not self.fills or not set(self.fills) <= set(FILLS):
            raise ValueError(f"fills must be some of {', '.join(FILLS)}, got {self.fills!r}")

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Paints over a batch.

        Args:
            images: [N, channels, S, T] floating point in [0, 1], on any device; left as they are.
            index: [N] int64, each image's position in its data set.
            seed: Key of the random numbers.
            epoch: Key of the random numbers.

        Returns:
            [N, channels, S, T] in [0, 1], same dtype and device.

        Raises:
            ValueError: Shapes do not fit.
        """
        if images.ndim != 4 or len(images) != len(index) or images.shape[1] != len(self.mean):
            raise ValueError(
                f"images must be [N, {len(self.mean)}, S, T] and index [N], "
                f"got {list(images.shape)} and {list(index.shape)}"
            )
        positions = index.cpu().numpy()
        random = uniform(2 + _EACH * self.rectangles[1], _MASKING, seed, epoch, positions)
        rows = np.flatnonzero(random[: len(positions), 0] < self.probability)
        if len(rows) == 0:
            return images
        covered, times = self._painted(random[rows, 1:], (images.shape[2], images.shape[3]))
        noise = _noise(times > 0, images.shape[1], seed, epoch, positions[rows])
        at = (images.device, images.dtype)
        mean, std = (
            torch.tensor(values)[:, None, None].to(*at) for values in (self.mean, self.std)
        )
        chosen = torch.from_numpy(rows).to(images.device)
        some = torch.where(
            torch.from_numpy(covered)[:, None].to(images.device), mean, images[chosen]
        )
        some += torch.from_numpy(times)[:, None].to(*at) * std * torch.from_numpy(noise).to(*at)
        return images.index_copy(0, chosen, some.clamp_(0, 1))

    def _painted(
        self, random: npt.NDArray[np.float64], size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
        """Which pixels no longer show the image, and how often noise is added: [n, S, T] each."""
        covered = np.zeros((len(random), *size), dtype=np.bool_)
        times = np.zeros((len(random), *size), dtype=np.uint8)
        least, most = self.rectangles
        numbers = least + np.floor(random[:, 0] * (most - least + 1)).astype(np.int64)
        for row, number in enumerate(numbers):
            for rectangle in random[row, 1:].reshape(most, _EACH)[:number]:
                place = (row, *self._place(rectangle, size))
                fill = self.fills[int(rectangle[4] * len(self.fills))]
                if fill == "noisy":
                    times[place] += 1
                else:
                    covered[place] = True
                    times[place] = fill == "noise"
        return covered, times

    def _place(self, random: npt.NDArray[np.float64], size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of a rectangle, at least one of each."""
        slices = []
        smallest, largest = self.size
        for side, how_long, where in zip(size, random[:2], random[2:4], strict=True):
            length = max(1, int(side * (smallest + how_long * (largest - smallest))))
            start = int(where * (side - length + 1))
            slices.append(slice(start, start + length))
        return slices[0], slices[1]


def _noise(
    wanted: npt.NDArray[np.bool_],
    channels: int,
    seed: int,
    epoch: int,
    positions: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Uniform numbers [n, channels, S, T] where ``wanted`` [n, S, T], else 0."""
    noise = np.zeros((len(wanted), channels, *wanted.shape[1:]), dtype=np.float32)
    rows, down, across = np.nonzero(wanted)
    pixels = down * wanted.shape[2] + across
    for channel in range(channels):
        places = pixels * channels + channel
        noise[rows, channel, down, across] = uniform_at(
            rows, places, _NOISE, seed, epoch, positions
        )
    return noise
