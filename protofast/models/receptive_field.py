"""Receptive fields: which pixels a location of the latent map sees."""

import math
from collections.abc import Iterable
from typing import NamedTuple


class Window(NamedTuple):
    """One convolution or pooling layer, the same in both directions."""

    kernel: int
    stride: int
    padding: int


class ReceptiveField(NamedTuple):
    """What each location (row, column) of the latent map sees of the image.

    grid: (H, W).
    image: (S, T), the image size that `grid` belongs to.
    jump: pixels from one location to the next.
    size: pixels the receptive field is wide and high, before it is clipped to the image.
    start: centre of the first location's field, in pixels from the image's edge.
    """

    grid: tuple[int, int]
    image: tuple[int, int]
    jump: int
    size: int
    start: float

    def box(self, location: int) -> tuple[int, int, int, int]:
        """The box (x0, y0, x1, y1) that `location` (row-major) sees; pixels, x1 and y1 exclusive.

        Raises:
            ValueError: `location` lies outside the grid.
        """
        if not 0 <= location < self.grid[0] * self.grid[1]:
            raise ValueError(f"location must lie in a grid of {self.grid}; got {location}")
        row, column = divmod(location, self.grid[1])
        y0, y1 = self._span(row, self.image[0])
        x0, x1 = self._span(column, self.image[1])
        return x0, y0, x1, y1

    def _span(self, index: int, pixels: int) -> tuple[int, int]:
        centre, half = self.start + index * self.jump, self.size / 2
        return max(int(centre - half), 0), min(int(centre + half), pixels)


def receptive_field(windows: Iterable[Window], image: tuple[int, int]) -> ReceptiveField:
    """Walk through `windows` in the order images pass them, as ProtoPNet's code does.

    Args:
        windows: every convolution and pooling on the longest path.
        image: (S, T), height and width in pixels.

    Raises:
        ValueError: the image is too small for the layers.
    """
    height, width = image
    jump, size, start = 1, 1, 0.5
    for kernel, stride, padding in windows:
        height = math.floor((height - kernel + 2 * padding) / stride) + 1
        width = math.floor((width - kernel + 2 * padding) / stride) + 1
        if height < 1 or width < 1:
            raise ValueError(
                f"an image of {image[0]} x {image[1]} pixels is too small for this backbone"
            )
        start += ((kernel - 1) / 2 - padding) * jump
        size += (kernel - 1) * jump
        jump *= stride
    return ReceptiveField((height, width), image, jump, size, start)
