"""Inputs for the tests of masked_view, and ways to compute it."""

import torch
from implementations import Implementation, Reference
from torch import Tensor

from protofast.ops import MaskedView, masked_view
from protofast.ops import reference_masked_view as reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# N, K, channels, H, W, S, T
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 7, 7, 32, 32),
    (1, 2, 4, 1, 1, 9, 5),
    (2, 1, 1, 2, 5, 1, 40),
    (1, 3, 3, 5, 1, 33, 1),
    (3, 2, 3, 14, 14, 30, 61),
    (1, 2, 1, 8, 9, 5, 4),  # smaller than its map
    (2, 2, 3, 3, 3, 31, 35),
]


def problem(
    n: int,
    k: int,
    channels: int,
    h: int,
    w: int,
    s: int,
    t: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: object = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, s, t, generator=generator)
    maps = torch.randn(n, k, h, w, generator=generator)
    return images.to(device, dtype), maps.to(device)


def run(
    implementation: Implementation,
    images: Tensor,
    maps: Tensor,
    quantile: float = 0.9,
    fill: Tensor | None = None,
) -> MaskedView:
    if isinstance(implementation, Reference):
        return MaskedView(*reference.masked_view(images, maps, quantile, fill))
    with implementation.active():
        return masked_view(images, maps, quantile=quantile, fill=fill)


def expected_views(images: Tensor, masks: Tensor, fill: Tensor | None) -> Tensor:
    """What the masks show, one image and channel after another."""
    n, channels, s, t = images.shape
    each = masks.view(n, -1, 1, s, t) if n else masks.view(0, 1, 1, s, t)
    colour = images.new_zeros(channels) if fill is None else fill.to(images.dtype)
    shown = torch.where(each, images.unsqueeze(1), colour.view(-1, 1, 1))
    return shown.flatten(0, 1)
