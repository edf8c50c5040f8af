"""From a similarity map on the latent grid to a heat map and a box on the image.

As in the original's push and analysis scripts (Chen et al. 2019, released code): the map is
up-sampled to the image bicubically, and the box is the bounding rectangle of *all* pixels at or
above the 95th percentile of the up-sampled map, not of one connected region. OpenCV's
``INTER_CUBIC`` and PyTorch's ``bicubic`` are the same filter (a = -0.75, edges repeated), so this
is computed in PyTorch on the map's device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INTERPOLATION = "bicubic"
PERCENTILE = 95.0

_PIXELS_AT_ONCE = 1 << 23  # of the up-sampled maps whose percentile is computed in one go


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Up-samples maps to the size of the image.

    Computed in float64 and rounded once, so that a flat map, or a flat part of one, stays exactly
    flat: in float32 the filter's weights do not add up to exactly 1, and the box would be drawn
    around rounding errors.

    Args:
        maps: Similarity maps [..., H, W].
        size: (S, T), height and width of the image in pixels.

    Returns:
        Heat maps [..., S, T], float32.
    """
    if maps.dim() < 2 or maps.shape[-1] == 0 or maps.shape[-2] == 0:
        raise ValueError(f"maps must be [..., H, W] with H, W > 0, got shape {tuple(maps.shape)}")
    flat = maps.detach().to(torch.float64).reshape(-1, 1, *maps.shape[-2:])  # [M, 1, H, W]
    if len(flat) == 0:
        return maps.new_zeros((*maps.shape[:-2], *size), dtype=torch.float32)
    large = F.interpolate(flat, size=size, mode=INTERPOLATION, align_corners=False)
    return large.to(torch.float32).reshape(*maps.shape[:-2], *size)


def high_activation_boxes(heatmaps: Tensor, *, percentile: float = PERCENTILE) -> Tensor:
    """The bounding rectangle of all pixels at or above a percentile of their heat map.

    The percentile interpolates linearly between pixels, as ``numpy.percentile`` does. A flat map
    gives the whole image; so does a map that holds NaN, where no pixel is above anything.

    Args:
        heatmaps: [..., S, T].
        percentile: In [0, 100].

    Returns:
        Boxes [..., 4] int64: x0, y0, x1, y1 in pixels; x1 and y1 are one past the last pixel.

    Raises:
        ValueError: The maps hold no pixels, or the percentile is out of range.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be in 0 … 100, got {percentile}")
    if heatmaps.dim() < 2 or heatmaps.shape[-1] == 0 or heatmaps.shape[-2] == 0:
        raise ValueError(
            f"heatmaps must be [..., S, T] with S, T > 0, got shape {tuple(heatmaps.shape)}"
        )
    height, width = heatmaps.shape[-2:]
    flat = heatmaps.detach().reshape(-1, height, width)  # [M, S, T]
    chunk = max(1, _PIXELS_AT_ONCE // (height * width))
    boxes = [_boxes(part, percentile / 100) for part in flat.split(chunk) if len(part)]
    found = torch.cat(boxes) if boxes else flat.new_zeros((0, 4), dtype=torch.int64)
    return found.reshape(*heatmaps.shape[:-2], 4)


def _boxes(heatmaps: Tensor, quantile: float) -> Tensor:
    """Boxes [M, 4] of heat maps [M, S, T]."""
    values = heatmaps.to(torch.float64)
    threshold = torch.quantile(values.flatten(1), quantile, dim=1)  # [M]
    above = ~(values < threshold[:, None, None])  # true everywhere if the threshold is NaN
    return torch.stack(
        (
            _first(above.any(dim=1)),
            _first(above.any(dim=2)),
            _last(above.any(dim=1)) + 1,
            _last(above.any(dim=2)) + 1,
        ),
        dim=1,
    )


def _first(hit: Tensor) -> Tensor:
    """First true position of each row of ``hit`` [M, n]."""
    return hit.to(torch.uint8).argmax(dim=1)


def _last(hit: Tensor) -> Tensor:
    """Last true position of each row of ``hit`` [M, n]."""
    return hit.shape[1] - 1 - _first(hit.flip(1))
