"""How far an explanation moved: the metrics of the spatial-misalignment benchmark.

Sacha et al. 2024 (2308.08162), their released code where the text leaves a choice. An image is
changed outside the region that a prototype's map marks; then it is asked whether the map still
marks that region (`location_change`, PLC), how much of the similarity is left
(`activation_change`, PAC), and how many prototypes have overtaken it (`rank_change`, PRC). All are
computed for a batch, on the device of their arguments, and each image's number depends on that
image alone; the published numbers are plain means over images.

N images, P prototypes, K chosen ones of each image, H x W grid, S x T image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protofast.heatmaps import PERCENTILE, high_activation_boxes, upsample
from protofast.ops import masked_view

MARGIN = 10
"""Pixels by which the released code widens a box on each side."""

QUANTILE = 0.9
"""A map marks the pixels above this quantile."""


def protected_boxes(
    maps: Tensor,
    size: tuple[int, int],
    *,
    percentile: float = PERCENTILE,
    margin: int = MARGIN,
    whole: bool = True,
) -> Tensor:
    """The rectangle that an explanation marks, and a margin around it.

    Each map is up-sampled bicubically; the rectangle holds all pixels at or above its percentile
    (of a flat map: the whole image).

    Args:
        maps: similarity maps [..., H, W].
        size: (S, T) of the images, in pixels.
        percentile: in [0, 100].
        margin: pixels added on each of the four sides, as far as the image reaches.
        whole: False ends a rectangle one pixel before the image does, below and on the right, as
            the released code: it writes 223 as the end of a range over 224 pixels.

    Returns:
        int64 [..., 4]: x0, y0, x1, y1 in pixels; x1 and y1 are one past the last.

    Raises:
        ValueError: the maps have no cells, or the percentile is out of range.
    """
    height, width = size
    boxes = high_activation_boxes(upsample(maps, size), percentile=percentile)
    x0, y0, x1, y1 = boxes.unbind(-1)
    last = 0 if whole else 1
    return torch.stack(
        (
            (x0 - margin).clamp(min=0),
            (y0 - margin).clamp(min=0),
            (x1 + margin).clamp(max=width - last),
            (y1 + margin).clamp(max=height - last),
        ),
        dim=-1,
    )


def outside(boxes: Tensor, size: tuple[int, int], counts: Tensor | None = None) -> Tensor:
    """The pixels that lie in none of an image's rectangles.

    Args:
        boxes: int64 [N, K, 4], as `protected_boxes` gives them.
        size: (S, T) of the images, in pixels.
        counts: bool [N, K], which of the rectangles there are; None for all.

    Returns:
        bool [N, 1, S, T].
    """
    rows = torch.arange(size[0], device=boxes.device).view(-1, 1)
    columns = torch.arange(size[1], device=boxes.device)
    free = torch.ones((len(boxes), *size), dtype=torch.bool, device=boxes.device)
    for k in range(boxes.shape[1]):  # one after another: K masks of every image would take memory
        x0, y0, x1, y1 = boxes[:, k].unsqueeze(-1).unsqueeze(-1).unbind(1)  # [N, 1, 1] each
        inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)  # [N, S, T]
        free &= ~(inside if counts is None else inside & counts[:, k, None, None])
    return free.unsqueeze(1)


def location_change(
    before: Tensor, after: Tensor, size: tuple[int, int], *, quantile: float = QUANTILE
) -> Tensor:
    """Of the pixels that a map marks, how many it marks no longer (PLC), in per cent.

    100 (1 - |M and M'| / |M or M'|), where M are the pixels at which the map, up-sampled bilinearly
    (align_corners=False), lies strictly above its quantile, and M' those of the map after the
    change. 0 where neither marks any.

    Args:
        before: maps [N, H, W] of one prototype for each image.
        after: the same prototypes' maps [N, H, W] on the changed images.
        size: (S, T) of the images, in pixels.
        quantile: in [0, 1].

    Returns:
        float64 [N], 0 ... 100.

    Raises:
        ValueError: shapes differ, or are not [N, H, W].

    >>> here, there = torch.tensor([[[[0.0, 5.0, 0.0, 0.0]]], [[[0.0, 0.0, 5.0, 0.0]]]])
    >>> location_change(here, there, (1, 40)), location_change(here, here, (1, 40))
    (tensor([100.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    if before.dim() != 3 or before.shape != after.shape:
        raise ValueError(
            f"before and after must be maps of the same shape [N, H, W]; got {list(before.shape)} "
            f"and {list(after.shape)}"
        )
    maps = torch.stack((before, after), dim=1)  # [N, 2, H, W]
    marked = masked_view(_canvas(maps, size), maps, quantile=quantile).masks
    first, second = marked.unflatten(0, (-1, 2)).unbind(1)  # [N, S, T] each
    common = (first & second).flatten(1).sum(dim=1).double()  # [N]
    either = (first | second).flatten(1).sum(dim=1).double()
    return torch.where(either > 0, 100 * (1 - common / either), 0.0)


def activation_change(before: Tensor, after: Tensor) -> Tensor:
    """How much of a prototype's largest similarity is gone (PAC), in per cent: 100 (1 - a' / a).

    It is not clipped: negative where the similarity has risen.

    Args:
        before: largest similarities [...] on the images as they were.
        after: those on the changed images, of the same shape.

    Returns:
        float64 [...]; NaN where `before` is not above 0, as a share of it means nothing there.

    >>> activation_change(torch.tensor([4.0, 4.0, 0.0]), torch.tensor([1.0, 5.0, 1.0]))
    tensor([ 75., -25.,  nan], dtype=torch.float64)
    """
    share = after.double() / before.double()
    return torch.where(before > 0, 100 * (1 - share), torch.nan)


def rank_change(before: Tensor, after: Tensor, prototype: Tensor, own: Tensor) -> Tensor:
    """How many more prototypes of other classes are strictly above a prototype than were (PRC).

    Args:
        before: largest similarities [N, P] of all prototypes on the images as they were.
        after: those on the changed images [N, P].
        prototype: int64 [N], the prototype of each image that is asked about.
        own: bool [N, P], which prototypes belong to the image's true class: they are not counted.
            All False where prototypes have no class.

    Returns:
        int64 [N], a number of prototypes; negative where it has risen past others.

    Raises:
        ValueError: shapes do not fit.
    """
    if before.dim() != 2 or not before.shape == after.shape == own.shape:
        raise ValueError(
            f"before, after and own must have the same shape [N, P]; got {list(before.shape)}, "
            f"{list(after.shape)} and {list(own.shape)}"
        )
    if prototype.shape != before.shape[:1]:
        raise ValueError(
            f"prototype must be [N] with N = {before.shape[0]}; got {list(prototype.shape)}"
        )
    return _above(after, prototype, own) - _above(before, prototype, own)


def _above(activations: Tensor, prototype: Tensor, own: Tensor) -> Tensor:
    """How many prototypes of other classes are strictly above `prototype`: int64 [N]."""
    level = activations.gather(1, prototype.unsqueeze(1))  # [N, 1]
    return ((activations > level) & ~own).sum(dim=1)


def _canvas(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Empty images [N, 1, S, T] for masks alone, without memory of their own."""
    return maps.new_zeros((1, 1, 1, 1)).expand(len(maps), 1, *size)
