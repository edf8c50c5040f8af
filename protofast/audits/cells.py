"""Cells of the latent grid and the pixels they stand for, on images and grids of any size.

Pixel (y, x) of an image S x T belongs to the cell (y*H // S, x*W // T) of a grid H x W: as in the
up-sampling of heat maps, the grid spans the image, whether or not the sizes divide. With 224 pixels
and 7 x 7 cells, cell r holds the pixels 32r ... 32r + 31 (as in Hoffmann et al. 2021, released
code). An image of fewer pixels than cells leaves cells without any.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def cells_of_boxes(
    boxes: Tensor, size: tuple[int, int], grid: tuple[int, int], *, border: bool = False
) -> Tensor:
    """The cells that boxes on the image reach into.

    Args:
        boxes: int64 [..., 4]: x0, y0, x1, y1 in pixels; x1 and y1 are one past the last.
        size: (S, T), of the image.
        grid: (H, W).
        border: Count the cell of the pixel one past the end too, so that a box which ends exactly
            between two cells reaches into the next one (the released code of Hoffmann et al. has
            `end // 32 + 1`, its end being one past the last already).

    Returns:
        bool [..., H, W].
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    past = 0 if border else 1
    rows = _between(y0, y1 - past, size[0], grid[0])  # [..., H]
    columns = _between(x0, x1 - past, size[1], grid[1])  # [..., W]
    return rows.unsqueeze(-1) & columns.unsqueeze(-2)


def _between(first: Tensor, last: Tensor, pixels: int, cells: int) -> Tensor:
    """Which cells of one axis lie between the cells of two pixels, both included: bool [..., n]."""
    place = torch.arange(cells, device=first.device)
    low = (first * cells).div(pixels, rounding_mode="floor").unsqueeze(-1)
    high = (last * cells).div(pixels, rounding_mode="floor").clamp_(max=cells - 1).unsqueeze(-1)
    return (place >= low) & (place <= high)


def bounding_rectangle(cells: Tensor) -> Tensor:
    """All cells of the smallest rectangle around the given ones: bool [..., H, W] for the same.

    No cells give no rectangle.
    """
    rows, columns = cells.any(dim=-1), cells.any(dim=-2)
    return _filled(rows).unsqueeze(-1) & _filled(columns).unsqueeze(-2)


def _filled(hit: Tensor) -> Tensor:
    """`hit` [..., n] with the gaps between its first and its last true entry filled."""
    counts = hit.to(torch.int64)
    return (counts.cumsum(-1) > 0) & (counts.flip(-1).cumsum(-1).flip(-1) > 0)


def pixels_of_cells(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of the given cells: bool [..., H, W] -> bool [..., S, T] for size (S, T)."""
    height, width = cells.shape[-2:]
    rows = torch.arange(size[0], device=cells.device) * height // size[0]
    columns = torch.arange(size[1], device=cells.device) * width // size[1]
    return cells[..., rows, :][..., columns]


def chosen_cells(places: Iterable[tuple[int, int]], grid: tuple[int, int]) -> Tensor:
    """The cells (row, column) as a set: bool [H, W].

    Raises:
        ValueError: A cell lies outside the grid, which is named.
    """
    cells = torch.zeros(grid, dtype=torch.bool)
    for row, column in places:
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise ValueError(
                f"cell ({row}, {column}) is not on the grid of {grid[0]} rows and {grid[1]} "
                "columns, which are counted from 0"
            )
        cells[row, column] = True
    return cells
