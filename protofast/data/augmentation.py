"""Augmentation on the fly, in batch, on the device where the images are.

The papers enlarge the training set on disk with the library Augmentor: 30 (with distortion 40)
altered copies of each image, a quarter or a third of them per kind, half of all flipped (ProtoPNet
and Hoffmann et al., ``img_aug.py``). Here each image is altered anew in each epoch, by the same
operations with the same distributions:

- *rotation* by up to ±``rotation`` degrees, then a zoom onto the largest upright rectangle of the
  image's shape that shows no border;
- *skew*: a perspective tilt that moves two corners of one side, or one corner, outwards by up to
  ``skew`` times the longer side (tilt left/right, up/down, any tilt, or a corner, equally likely,
  as Augmentor's "RANDOM");
- *shear* by up to ±``shear`` degrees along x or y, then a zoom that hides the border;
- *distortion*: the inner vertices of a ``distortion_grid`` are moved by up to ±``distortion``
  pixels of a 224-pixel image in x and y, smoothly (bilinearly) in between.

One kind is chosen per image (``kinds="one"``), all of those that are switched on are applied with
``kinds="all"``. Crop, kind and flip are composed into one homography, so that the image is sampled
once: bilinearly, ``reflect``-ed at the border, which only ``kinds="all"`` and distortion can touch.
(Augmentor samples bicubically, once per step.)

Every random number is a hash of (seed, epoch, image index); all arithmetic is done per pixel. So
what happens to an image depends on nothing else: not on its batch, rank or worker, nor on where a
run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from protofast.data.randomness import uniform

Numbers = npt.NDArray[np.float64]
_AUGMENTATION = 2  # purpose of these random numbers; see randomness.py
_SCALARS = 20  # random numbers per image before those of the distortion's vertices
_KINDS = ("rotation", "skew", "shear", "distortion")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a training image; everything is off by default.

    Attributes:
        rotation: Largest angle in degrees, in [0, 45).
        skew: Largest shift of a corner as a fraction of the longer side, in [0, 1].
        shear: Largest angle in degrees, in [0, 45).
        distortion: Largest shift of a vertex in pixels of a 224-pixel image, in [0, 20].
        distortion_grid: Tiles in y and x.
        kinds: ``"one"`` of the four above per image, or ``"all"`` that are switched on.
        flip: Probability of a horizontal flip.
        crop_scale: Smallest share of the area that a random crop keeps, in (0, 1]; 1 switches
            cropping off.
        brightness: Factor in 1 ± brightness, in [0, 1).
        contrast: Factor in 1 ± contrast around mid-grey, in [0, 1).
        saturation: Factor in 1 ± saturation, in [0, 1]; nothing happens to one-channel images.
    """

    rotation: float = 0.0
    skew: float = 0.0
    shear: float = 0.0
    distortion: float = 0.0
    distortion_grid: tuple[int, int] = (10, 10)
    kinds: Literal["one", "all"] = "one"
    flip: float = 0.0
    crop_scale: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "rotation": (0, 44.9),
            "skew": (0, 1),
            "shear": (0, 44.9),
            "distortion": (0, 20),
            "flip": (0, 1),
            "crop_scale": (0.01, 1),
            "brightness": (0, 0.99),
            "contrast": (0, 0.99),
            "saturation": (0, 1),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low} … {high}, got {getattr(self, name)!r}")
        if self.kinds not in ("one", "all"):
            raise ValueError(f'kinds must be "one" or "all", got {self.kinds!r}')
        if len(self.distortion_grid) != 2 or min(self.distortion_grid) < 2:
            raise ValueError(
                f"distortion_grid must be two numbers ≥ 2, got {self.distortion_grid!r}"
            )

    @staticmethod
    def none() -> Augmentation:
        """Images as they are."""
        return Augmentation()

    @staticmethod
    def paper() -> Augmentation:
        """ProtoPNet's: one of rotation ±15°, skew 0.2 and shear ±10°, flips half the time."""
        return Augmentation(rotation=15, skew=0.2, shear=10, flip=0.5)

    @staticmethod
    def hoffmann() -> Augmentation:
        """Hoffmann et al.'s: as the paper's, and distortion (grid 10 by 10, magnitude 5)."""
        return Augmentation(rotation=15, skew=0.2, shear=10, distortion=5, flip=0.5)

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        return bool(
            self.rotation
            or self.skew
            or self.shear
            or self.distortion
            or self.flip
            or self.crop_scale < 1
        )

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Alters a batch.

        Args:
            images: [N, channels, S, T] floating point in [0, 1], on any device.
            index: [N] int64, each image's position in its data set.
            seed: Key of the random numbers.
            epoch: Key of the random numbers.

        Returns:
            [N, channels, S, T] in [0, 1], same dtype and device.
        """
        if images.ndim != 4 or len(images) != len(index):
            raise ValueError(
                "images must be [N, channels, S, T] and index [N], "
                f"got {list(images.shape)} and {list(index.shape)}"
            )
        if self == Augmentation.none() or len(images) == 0:
            return images
        rows, columns = self.distortion_grid
        count = _SCALARS + (2 * (rows - 1) * (columns - 1) if self.distortion else 0)
        random = uniform(count, _AUGMENTATION, seed, epoch, index.cpu().numpy())
        if self.moves:
            images = self._moved(images, random)
        if self.brightness or self.contrast or (self.saturation and images.shape[1] == 3):
            images = self._coloured(images, random[:, 16:19])
        return images

    def _moved(self, images: Tensor, random: Numbers) -> Tensor:
        size = (images.shape[2], images.shape[3])
        chosen = self._chosen_kinds(random[:, 0])
        matrices = np.broadcast_to(np.eye(3), (len(random), 3, 3))
        # Each matrix maps a place in the altered image to the place it shows; the leftmost acts
        # last.
        matrices = _crops(random[:, 1:4], self.crop_scale) @ matrices
        for kind, number in (("rotation", 4), ("skew", 6), ("shear", 10)):
            amount = getattr(self, kind)
            if amount:
                make = {"rotation": _rotations, "skew": _skews, "shear": _shears}[kind]
                matrix = make(random[:, number : number + 4], amount, size)
                matrices = np.where(chosen[kind][:, None, None], matrix, np.eye(3)) @ matrices
        unmoved = (matrices == np.eye(3)).all(axis=(1, 2))
        mirrored = random[:, 15] < self.flip
        mirror = np.where(mirrored, -1.0, 1.0)
        matrices = (
            matrices * np.stack([mirror, np.ones_like(mirror), np.ones_like(mirror)], -1)[:, None]
        )
        grid = _sampling_grid(matrices, size, images)
        if self.distortion:
            unmoved &= ~chosen["distortion"]
            shifts = np.where(chosen["distortion"][:, None], random[:, _SCALARS:] * 2 - 1, 0.0)
            grid = grid + self._distortion(shifts, size, images)
        moved = F.grid_sample(
            images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
        # Sampling at the pixels' own places would be exact only up to rounding.
        for still, source in ((unmoved & ~mirrored, images), (unmoved & mirrored, images.flip(-1))):
            if still.any():
                at = torch.from_numpy(still).to(images.device)
                moved = torch.where(at[:, None, None, None], source, moved)
        return moved

    def _chosen_kinds(self, random: Numbers) -> dict[str, npt.NDArray[np.bool_]]:
        """Which kinds happen to which image."""
        on = [kind for kind in _KINDS if getattr(self, kind)]
        pick = np.floor(random * max(1, len(on))).astype(np.int64)
        return {kind: (pick == number) | (self.kinds == "all") for number, kind in enumerate(on)}

    def _distortion(self, shifts: Numbers, size: tuple[int, int], images: Tensor) -> Tensor:
        """Shifts of the inner vertices, in [-1, 1], as a smooth field [N, S, T, 2]."""
        rows, columns = self.distortion_grid
        vertices = np.zeros((len(shifts), 2, rows + 1, columns + 1))
        vertices[:, :, 1:-1, 1:-1] = shifts.reshape(len(shifts), 2, rows - 1, columns - 1)
        # The grid is in units of half an image.
        vertices *= self.distortion / 224 * 2
        coarse = torch.from_numpy(vertices).to(images.device, images.dtype)
        field = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
        return field.permute(0, 2, 3, 1)

    def _coloured(self, images: Tensor, random: Numbers) -> Tensor:
        def factors(column: int, amount: float) -> Tensor:
            values = torch.from_numpy(1 + (random[:, column] * 2 - 1) * amount)
            return values.to(images.device, images.dtype)[:, None, None, None]

        if self.saturation and images.shape[1] == 3:
            red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
            luma = 0.299 * red + 0.587 * green + 0.114 * blue
            images = luma + (images - luma) * factors(2, self.saturation)
        if self.contrast:
            images = (images - 0.5) * factors(1, self.contrast) + 0.5
        if self.brightness:
            images = images * factors(0, self.brightness)
        return images.clamp(0, 1)


# Matrices [N, 3, 3] below map (x, y, 1) of the altered image to homogeneous coordinates of the
# given one, both in units in which the image spans [-1, 1] in x and y (x to the right, y down).


def _matrices(*entries: Numbers | float) -> Numbers:
    """Nine entries, arrays [N] or numbers, to matrices [N, 3, 3]."""
    return np.stack(np.broadcast_arrays(*entries), axis=-1).reshape(-1, 3, 3)


def _crops(random: Numbers, smallest: float) -> Numbers:
    side = np.sqrt(1 - random[:, 0] * (1 - smallest))
    x, y = ((random[:, k] * 2 - 1) * (1 - side) for k in (1, 2))
    return _matrices(side, 0.0, x, 0.0, side, y, 0.0, 0.0, 1.0)


def _rotations(random: Numbers, degrees: float, size: tuple[int, int]) -> Numbers:
    height, width = size
    angle = np.radians((random[:, 0] * 2 - 1) * degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    steep = np.abs(sin)
    zoom = np.minimum(
        width / (width * cos + height * steep), height / (width * steep + height * cos)
    )
    return _matrices(
        zoom * cos, zoom * -sin * height / width, 0.0,
        zoom * sin * width / height, zoom * cos, 0.0,
        0.0, 0.0, 1.0,
    )  # fmt: skip


def _shears(random: Numbers, degrees: float, size: tuple[int, int]) -> Numbers:
    height, width = size
    slope = np.tan(np.radians((random[:, 0] * 2 - 1) * degrees))
    along_x = random[:, 1] < 0.5
    shift_x = np.where(along_x, slope * height / width, 0.0)
    shift_y = np.where(along_x, 0.0, slope * width / height)
    return _matrices(
        1 - np.abs(shift_x), shift_x, 0.0,
        shift_y, 1 - np.abs(shift_y), 0.0,
        0.0, 0.0, 1.0,
    )  # fmt: skip


def _skews(random: Numbers, magnitude: float, size: tuple[int, int]) -> Numbers:
    """The homography that sends the moved corners to the image's corners."""
    height, width = size
    amount = random[:, 2] * magnitude * max(size)
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    # Tilts: left, right, forward, backward; then each corner along x and along y. Outward moves,
    # [12, 4 corners, (x, y)].
    moves = np.zeros((12, 4, 2))
    for tilt, (first, second, axis) in enumerate([(0, 3, 1), (1, 2, 1), (0, 1, 0), (2, 3, 0)]):
        moves[tilt, [first, second], axis] = corners[[first, second], axis]
    for corner in range(4):
        for axis in range(2):
            moves[4 + 2 * corner + axis, corner, axis] = corners[corner, axis]
    # Four sorts, equally likely: any tilt, tilt left/right, tilt up/down, a corner.
    sort = np.floor(random[:, 0] * 4).astype(np.int64)
    start, number = np.array([0, 0, 2, 4])[sort], np.array([4, 2, 2, 8])[sort]
    move = moves[start + np.floor(random[:, 1] * number).astype(np.int64)]
    half = np.array([width / 2, height / 2])
    moved = corners + move * amount[:, None, None] / half
    system = np.zeros((len(random), 8, 8))
    for corner in range(4):
        x, y = moved[:, corner, 0], moved[:, corner, 1]
        for axis in range(2):
            row, target = system[:, 2 * corner + axis], corners[corner, axis]
            row[:, 3 * axis], row[:, 3 * axis + 1], row[:, 3 * axis + 2] = x, y, 1.0
            row[:, 6], row[:, 7] = -target * x, -target * y
    solution = np.linalg.solve(system, np.tile(corners.reshape(1, 8, 1), (len(random), 1, 1)))
    return np.concatenate([solution[:, :, 0], np.ones((len(random), 1))], 1).reshape(-1, 3, 3)


def _sampling_grid(matrices: Numbers, size: tuple[int, int], images: Tensor) -> Tensor:
    """Where each pixel of the altered images looks: [N, S, T, 2], on the device of ``images``.

    Elementwise on purpose: a matrix product may round differently for another batch size.
    """
    height, width = size
    at = images.device, images.dtype
    x = torch.from_numpy((np.arange(width) + 0.5) / width * 2 - 1).to(*at)
    y = torch.from_numpy((np.arange(height) + 0.5) / height * 2 - 1).to(*at)[:, None]
    entry = torch.from_numpy(np.ascontiguousarray(matrices.reshape(-1, 9))).to(*at)[
        :, :, None, None
    ]
    bottom = entry[:, 6] * x + (entry[:, 7] * y + entry[:, 8])
    across = (entry[:, 0] * x + (entry[:, 1] * y + entry[:, 2])) / bottom
    down = (entry[:, 3] * x + (entry[:, 4] * y + entry[:, 5])) / bottom
    return torch.stack([across, down], dim=-1)
