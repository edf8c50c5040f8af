"""Where an attack may go: the ball around each image, within mask and bounds.

N images [N, channels, S, T]. A ball knows how to start inside, how to take a step along a gradient,
and how to stay inside; whatever it returns is inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from protofast.attacks.noise import uniform_integers, uniform_noise

Extent = float | Tensor
"""A number, or a tensor that broadcasts to the images."""


class Ball(ABC):
    """Around each of N images; see the module's docstring."""

    @abstractmethod
    def start(self, image_ids: Tensor, *, seed: int, restart: int, masked: bool) -> Tensor:
        """A random point of each ball; without `masked`, of the ball without its mask."""

    @abstractmethod
    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """One step uphill from `images`, which may lie outside; back inside."""

    @abstractmethod
    def inside(self, images: Tensor) -> Tensor:
        """The images, each moved into its ball if it is not there."""

    @abstractmethod
    def rows(self, chosen: Tensor) -> Self:
        """The balls of some images: int64 [n]."""


class LinfBall(Ball):
    """No value moves farther than epsilon: a box, whose two ends hold mask and bounds as well.

    The ends are rounded towards the image, so that the distance keeps to epsilon exactly.

    Args:
        images: [N, channels, S, T], floating point.
        epsilon: Radius.
        step_size: Length of a step in each value.
        mask: Bool, broadcastable to the images, or None: which values may move.
        bounds: Least and largest value, or None. An image beyond them does not go farther.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        epsilon: Extent,
        step_size: Extent,
        mask: Tensor | None,
        bounds: tuple[float, float] | None,
    ) -> None:
        self.images = images
        self.radius = _per_image(epsilon, images)
        self.step_size = _per_image(step_size, images)
        self.bounds = bounds
        low, high = self._ends()
        self.low = low if mask is None else torch.where(mask, low, images)
        self.high = high if mask is None else torch.where(mask, high, images)

    def start(self, image_ids: Tensor, *, seed: int, restart: int, masked: bool) -> Tensor:
        """See `Ball.start`."""
        noise = uniform_noise(
            self.images.shape[1:],
            image_ids,
            seed=seed,
            restart=restart,
            low=-1.0,
            dtype=self.images.dtype,
            device=self.images.device,
        )
        moved = self.images + noise * self.radius
        return self.inside(moved) if masked else torch.clamp(moved, *self._ends())

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """See `Ball.step`."""
        return self.inside(images + self.step_size * _no_nan(gradient).sign())

    def inside(self, images: Tensor) -> Tensor:
        """See `Ball.inside`."""
        return torch.clamp(images, self.low, self.high)

    def rows(self, chosen: Tensor) -> Self:
        """See `Ball.rows`."""
        some = object.__new__(type(self))
        some.bounds = self.bounds
        for name in ("images", "radius", "step_size", "low", "high"):
            setattr(some, name, _rows_of(getattr(self, name), chosen))
        return some

    def _ends(self) -> tuple[Tensor, Tensor]:
        images, dtype = self.images, self.images.dtype
        exact = images.double()
        radius = self.radius.double() if isinstance(self.radius, Tensor) else self.radius
        ends = []
        for sign in (-1.0, 1.0):
            end = exact + sign * radius
            rounded = end.to(dtype)
            beyond = (rounded.double() - end) * sign > 0
            ends.append(torch.where(beyond, torch.nextafter(rounded, images), rounded))
        return _bounded(ends[0], images, self.bounds), _bounded(ends[1], images, self.bounds)


class L2Ball(Ball):
    """No image moves farther than epsilon in Euclidean distance, up to the rounding of its dtype.

    Args:
        images: [N, channels, S, T], floating point.
        epsilon: Radius: a number, or one per image, [N, 1, 1, 1].
        step_size: Length of a step, likewise.
        mask: As in `LinfBall`.
        bounds: As in `LinfBall`.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        epsilon: Extent,
        step_size: Extent,
        mask: Tensor | None,
        bounds: tuple[float, float] | None,
    ) -> None:
        self.images = images
        self.radius = _per_image(epsilon, images)
        self.step_size = _per_image(step_size, images)
        self.mask = mask
        self.bounds = bounds

    def start(self, image_ids: Tensor, *, seed: int, restart: int, masked: bool) -> Tensor:
        """See `Ball.start`.

        In a direction of uniform components, at a uniform share of the radius. (The length is a sum
        of integers, which is the same in any order.)
        """
        shape, device = self.images.shape[1:], self.images.device
        direction = uniform_integers(shape, image_ids, seed=seed, restart=restart, device=device)
        direction = (direction >> 4) - 2**19  # 20 bits, so that the sum of squares fits into 63
        if masked and self.mask is not None:
            direction = direction * self.mask
        length = direction.square().sum(dim=(1, 2, 3), keepdim=True).double().sqrt()
        share = uniform_noise(
            (1, 1, 1), image_ids, seed=seed, restart=~restart, dtype=torch.float64, device=device
        )
        scale = share * self.radius / length.clamp_min(1.0)
        moved = self.images + (direction * scale).to(self.images.dtype)
        return _bounded(moved, self.images, self.bounds)

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """See `Ball.step`."""
        gradient = _no_nan(gradient)
        if self.mask is not None:
            gradient = gradient * self.mask
        # By its largest value first, so that no square is too large or too small for its dtype.
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        gradient = gradient / torch.where(largest > 0, largest, 1)
        length = _length(gradient)
        uphill = gradient / torch.where(length > 0, length, 1).to(gradient.dtype)
        return self.inside(images + self.step_size * uphill)

    def inside(self, images: Tensor) -> Tensor:
        """See `Ball.inside`."""
        moved = images - self.images
        if self.mask is not None:
            moved = moved * self.mask
        length = _length(moved)
        scale = torch.where(length > self.radius, self.radius / length.clamp_min(1e-300), 1.0)
        return _bounded(self.images + moved * scale.to(moved.dtype), self.images, self.bounds)

    def rows(self, chosen: Tensor) -> Self:
        """See `Ball.rows`."""
        some = object.__new__(type(self))
        some.bounds = self.bounds
        for name in ("images", "radius", "step_size", "mask"):
            setattr(some, name, _rows_of(getattr(self, name), chosen))
        return some


def _bounded(images: Tensor, around: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Clamped to the bounds, but never away from where the image was."""
    if bounds is None:
        return images
    low, high = around.clamp(max=bounds[0]), around.clamp(min=bounds[1])
    return torch.clamp(images, low, high)


def _no_nan(gradient: Tensor) -> Tensor:
    """0 for what is not a number: no step there."""
    return torch.nan_to_num(gradient, nan=0.0)


def _length(images: Tensor) -> Tensor:
    """Euclidean length of each image: float64 [N, 1, 1, 1]."""
    return images.double().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def _per_image(extent: Extent, images: Tensor) -> Extent:
    """A number as it is; a tensor as the images' dtype, never rounded up, a row for each image."""
    if not isinstance(extent, Tensor):
        return extent
    exact = extent.detach().to(images.device).double()
    extent = exact.to(images.dtype)
    below = torch.nextafter(extent, torch.zeros_like(extent))
    extent = torch.where(extent.double() > exact, below, extent)
    shape = [1] * (4 - extent.dim()) + list(extent.shape)
    return extent.view(shape).expand(len(images), *shape[1:])


def _rows_of(value: Extent | None, chosen: Tensor) -> Extent | None:
    return value[chosen] if isinstance(value, Tensor) else value
